"""Acquisitions: what an archive holds, one scene at one time, before any of it is paired.

What cannot be used is no error but a row of its own, `LeftOut`, with a reason that a program can sort by
and a sentence for people.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, overload

import shapely

from hisem.archive.addresses import objection, path_defect
from hisem.archive.footprints import repaired

log = logging.getLogger(__name__)

LONGEST_ID = 400
"""Characters of an acquisition's id at most: two of them make a pair_id."""
LONGEST_DETAIL = 1000
"""Characters of a reason at most."""


class Reason(StrEnum):
    """Why an acquisition is in no pair as the newer one."""

    UNREADABLE = "unreadable"
    NOT_AN_ITEM = "not_an_item"
    NO_GEOMETRY = "no_geometry"
    NO_DATETIME = "no_datetime"
    NO_ASSET = "no_asset"
    BAD_CLOUD_COVER = "bad_cloud_cover"
    DUPLICATE_ID = "duplicate_id"
    TOO_CLOUDY = "too_cloudy"
    NO_PREDECESSOR = "no_predecessor"
    NO_PREDECESSOR_IN_TIME = "no_predecessor_in_time"
    NO_CLEAR_PREDECESSOR = "no_clear_predecessor"
    NO_OVERLAPPING_PREDECESSOR = "no_overlapping_predecessor"


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """One scene at one time."""

    id: str
    """Unique within its collection."""
    collection: str | None
    """What it is compared within; None is a collection of its own."""
    time: datetime
    """When it was taken, with time zone."""
    footprint: shapely.Geometry
    """Polygon or multipolygon in degrees, valid, between -180 and 180."""
    rasters: tuple[str, ...]
    """Paths or URIs of its pixels; several are pieces of one mosaic."""
    masks: tuple[str, ...] = ()
    """Rasters whose non-zero pixels are clouds or otherwise invalid."""
    cloud_cover: float | None = None
    """Percent of the scene, 0 to 100; None where it is not known."""
    where: str = field(compare=False)
    """The file or service that it was read from."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """An acquisition, or what should have been one, that is not used, and why."""

    id: str | None
    collection: str | None
    where: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class Reading:
    """What a source held."""

    acquisitions: list[Acquisition]
    """In the order of collection, id."""
    unusable: list[LeftOut]
    """What could not be used as an acquisition."""
    copies: int
    """Further copies of acquisitions, equal in everything."""


class Unusable(Exception):  # noqa: N818 - a reason to leave one out, never seen by people
    """One acquisition cannot be used; `reason` and `detail` become its `LeftOut`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def collected(found: Iterable[Acquisition | LeftOut]) -> Reading:
    """What was found, whatever its order: each collection's ids once.

    Of acquisitions that share an id and differ, the earliest is kept (then the one whose rasters sort
    first), and the others are unusable.
    """
    acquisitions: dict[tuple[str, str], Acquisition] = {}
    unusable: list[LeftOut] = []
    copies = 0
    everything = list(found)
    for one in sorted((one for one in everything if isinstance(one, Acquisition)), key=_order):
        kept = acquisitions.setdefault((one.collection or "", one.id), one)
        if kept is one:
            continue
        if kept == one:
            copies += 1
            continue
        detail = f"another acquisition with this id is kept, of {kept.time.isoformat()} from {kept.where}"
        unusable.append(
            LeftOut(id=one.id, collection=one.collection, where=one.where, reason=Reason.DUPLICATE_ID, detail=detail)
        )
    unusable += [one for one in everything if isinstance(one, LeftOut)]
    unusable.sort(key=lambda one: (one.where, one.collection or "", one.id or "", one.reason, one.detail))
    return Reading(list(acquisitions.values()), unusable, copies)


def _order(one: Acquisition) -> tuple[Any, ...]:
    """A total order of what differs: collection and id first."""
    cloud = -1.0 if one.cloud_cover is None else one.cloud_cover
    return one.collection or "", one.id, one.time, one.rasters, one.masks, cloud, one.footprint.wkb


def in_utc(time: datetime) -> datetime:
    """`time` in UTC; one without zone is taken to be in UTC already."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def acquisition_or_reason(
    make: Callable[[], Acquisition], item_id: str | None, collection: str | None, where: str
) -> Acquisition | LeftOut:
    """Return what `make` returns, or why it raises: no item or row affects another.

    Names and reasons of what is left out can be written as UTF-8.
    """
    try:
        return make()
    except Unusable as error:
        reason, detail = error.reason, error.detail
    except Exception as error:  # libraries for geometry, JSON and STAC have no base for what they raise
        log.debug("%s: %s", where, item_id, exc_info=True)
        reason, detail = Reason.NOT_AN_ITEM, f"it cannot be read ({type(error).__name__}: {error})"
    return LeftOut(
        id=writable(item_id), collection=writable(collection), where=where, reason=reason, detail=writable(detail)
    )


@overload
def writable(text: str) -> str: ...
@overload
def writable(text: None) -> None: ...
def writable(text: str | None) -> str | None:
    """`text` of at most `LONGEST_DETAIL` characters that can be written as UTF-8."""
    if text is None:
        return None
    shortened = text if len(text) <= LONGEST_DETAIL else f"{text[:LONGEST_DETAIL]}..."
    return shortened.encode("utf-8", "backslashreplace").decode()


def checked_id(text: str) -> str:
    """The name of an acquisition or collection. Raises `Unusable` where it is too long or not UTF-8."""
    if len(text) > LONGEST_ID:
        raise Unusable(Reason.NOT_AN_ITEM, f"its name has {len(text)} characters, more than {LONGEST_ID}")
    if writable(text) != text:
        raise Unusable(Reason.NOT_AN_ITEM, f"its name {text!r} is not text that can be written as UTF-8")
    return text


def checked_time(value: Any) -> datetime:
    """ISO 8601 text or a datetime as a time in UTC. Raises `Unusable` for anything else."""
    if value is None:
        raise Unusable(Reason.NO_DATETIME, "it says no time")
    try:
        return in_utc(value if isinstance(value, datetime) else datetime.fromisoformat(value.strip()))
    except (ValueError, AttributeError, OverflowError) as error:
        raise Unusable(Reason.NO_DATETIME, f"its time {value!r} is not ISO 8601") from error


def checked_raster(uri: str) -> str:
    """The path or URI of a raster. Raises `Unusable` where it holds a secret or is of a kind that is not opened."""
    if defect := path_defect(uri):
        raise Unusable(Reason.NO_ASSET, defect)
    if told := objection(uri):
        raise Unusable(Reason.NO_ASSET, told)
    return uri


def checked_footprint(geometry: shapely.Geometry | None) -> shapely.Geometry:
    """The repaired footprint. Raises `Unusable` where there is none."""
    if geometry is None:
        raise Unusable(Reason.NO_GEOMETRY, "it has no geometry")
    try:
        return repaired(geometry)
    except (ValueError, shapely.errors.ShapelyError) as error:
        raise Unusable(Reason.NO_GEOMETRY, f"its geometry cannot be used: {error}") from error


def checked_cloud_cover(value: Any) -> float | None:
    """Percent of clouds, or None where it is not known: null, NaN, or below zero, as Landsat writes it.

    Raises `Unusable` for what is no percentage.
    """
    try:
        percent = math.nan if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        percent = math.inf
    if percent > 100 or math.isinf(percent) or isinstance(value, bool):
        raise Unusable(Reason.BAD_CLOUD_COVER, f"its cloud cover {value!r} is not a percentage from 0 to 100")
    return percent if percent >= 0 else None
