"""Pairing: the acquisitions of an archive, each with its best predecessor, as a catalogue."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Annotated, Any

import pyarrow as pa

from hisem import storage
from hisem.archive.acquisitions import Acquisition, LeftOut, Reading, Reason, in_utc
from hisem.archive.catalogue import SEPARATOR, write_catalogue
from hisem.archive.footprint_table import read_footprints
from hisem.archive.predecessors import PairingConfig, Predecessors
from hisem.archive.rows import SUFFIXES, csv_bytes, table_suffix
from hisem.archive.stac import ApiSearch, AssetChoice, read_items, search_items
from hisem.errors import ConfigError
from hisem.ranges import Days, Overlap, Percent, Range, require_ranges
from hisem.schemas import CATALOGUE
from hisem.writable import require_writable

LEFT_OUT = pa.schema([(name, pa.string()) for name in ("id", "collection", "reason", "detail", "where")])
"""The table of what was left out: `reason` is one of `acquisitions.Reason`."""


@dataclass(frozen=True, kw_only=True)
class PairRequest:
    """What to pair, as a person says it: the flags that pairing and captioning share."""

    assets: tuple[str, ...] = ()
    """Names of the assets with the pixels, or patterns ('tile_*'): pieces of one mosaic, not bands. Default: the asset
    named visual, else the only one with role visual, else the only one with role data, else the only asset."""
    mask_asset: str | None = None
    """Name of the asset whose non-zero pixels are clouds or otherwise invalid."""
    min_overlap: Overlap = PairingConfig.min_overlap
    """Fraction of the newer footprint that the older one covers."""
    min_days: Days = PairingConfig.min_days
    """Least days between the two dates."""
    max_days: Days = PairingConfig.max_days
    """Most days between the two dates."""
    max_cloud: Percent = PairingConfig.max_cloud
    """Most clouds on either date, in percent; where the cloud cover is unknown, it passes."""
    across_collections: bool = False
    """Also pair acquisitions of different collections."""
    since: str | None = None
    """Find predecessors only for acquisitions taken from then on: a date, an ISO 8601 time, or yesterday (UTC)."""
    collections: tuple[str, ...] = ()
    """Collections to ask a STAC API for. Its items are asked for from --since less --max-days on."""
    bbox: Annotated[tuple[float, float, float, float], Range(-180, 180)] | None = None
    """West, south, east and north in degrees, to ask a STAC API for."""

    def __post_init__(self) -> None:
        require_ranges(self)
        if self.bbox and not -90 <= self.bbox[1] < self.bbox[3] <= 90:
            raise ConfigError(f"bbox is {' '.join(map(str, self.bbox))}: south lies below north, from -90 to 90.")

    def changed(self) -> dict[str, Any]:
        """The options that are not the default."""
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}

    def config(self, now: datetime) -> PairingConfig:
        """What makes a pair, `yesterday` seen from `now`. Raises `ConfigError` for limits that make no sense."""
        return PairingConfig(
            min_overlap=self.min_overlap,
            min_days=self.min_days,
            max_days=self.max_days,
            max_cloud=self.max_cloud,
            across_collections=self.across_collections,
            since=None if self.since is None else parsed_since(self.since, now),
        )


WHOLE_ARCHIVE = PairRequest()
"""All acquisitions, by the default limits."""


def require_one_source(catalogue: str | None, items: str | None, request: PairRequest) -> None:
    """Raise `ConfigError` where both a catalogue and items are named, or a request without items."""
    if catalogue is not None and items is not None:
        raise ConfigError("Give one of --catalog FILE and --items ITEMS, not both.")
    if items is None and (unused := request.changed()):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise ConfigError(f"--items ITEMS names what is paired: give it as well, or leave out {flags}.")


@dataclass(frozen=True)
class Summary:
    """What a run found and wrote."""

    output: str
    left_out_table: str
    """Columns as in `LEFT_OUT`."""
    acquisitions: int
    """Usable ones, each once."""
    copies: int
    """Further copies of them."""
    unknown_cloud: int
    """Those among them that say nothing of clouds."""
    older: int
    """Those before `since`, which only serve as predecessors."""
    pairs: int
    left_out: list[LeftOut]
    """The unusable ones first."""
    unusable: int
    """How many of the left out could not be used as acquisitions at all."""

    @property
    def reasons(self) -> dict[str, int]:
        """How many were left out for each reason, the most frequent first."""
        return dict(Counter(str(one.reason) for one in self.left_out).most_common())

    def rows(self) -> dict[str, object]:
        """What a person is told: what, how much."""
        return {
            "acquisitions": self.acquisitions,
            "identical copies": self.copies,
            "cloud cover unknown": self.unknown_cloud,
            "before --since": self.older,
            "pairs": self.pairs,
            **{f"left out: {reason}": count for reason, count in self.reasons.items()},
        }


@dataclass(frozen=True)
class Pairing:
    """The pairs, and what is in none of them as the newer one."""

    catalogue: pa.Table
    """Schema CATALOGUE, in the order of the newer time, then of pair_id."""
    left_out: list[LeftOut]
    older: int
    """Acquisitions before `since`."""


def pair_archive(items: str, output: str, request: PairRequest, now: datetime) -> Summary:
    """Read acquisitions, pair them, and write the catalogue `output` and, beside it, `<stem>.left_out.csv`.

    `items` is a table of footprints (`.parquet`, `.csv`), the address of a STAC API (`http`), or a file or
    folder of STAC items.

    Raises `ConfigError` for a request that makes no sense or does not go with `items`; `CatalogueError`,
    `AcquisitionsError` and `StorageError` where something cannot be read or written as a whole.
    """
    items, output = storage.absolute(items), storage.absolute(output)
    table_suffix(output)
    require_writable(output, folder=False)
    if items == output:
        raise ConfigError(f"output is {output}, which holds the items; name another file.")
    config = request.config(now)
    reading = _reading(items, request, config)
    if table_suffix(output) == "csv":
        reading = _fit_for_csv(reading)
    pairing = pair_acquisitions(reading.acquisitions, config)
    left_out = [*reading.unusable, *pairing.left_out]
    write_catalogue(pairing.catalogue, output)
    beside = f"{posixpath.splitext(output)[0]}.left_out.csv"
    storage.write_bytes(beside, csv_bytes(pa.Table.from_pylist([asdict(one) for one in left_out], schema=LEFT_OUT)))
    return Summary(
        output=output,
        left_out_table=beside,
        acquisitions=len(reading.acquisitions),
        copies=reading.copies,
        unknown_cloud=sum(one.cloud_cover is None for one in reading.acquisitions),
        older=pairing.older,
        pairs=pairing.catalogue.num_rows,
        left_out=left_out,
        unusable=len(reading.unusable),
    )


def _reading(items: str, request: PairRequest, config: PairingConfig) -> Reading:
    """The acquisitions behind `items`, read by what it is."""
    assets = AssetChoice(request.assets, request.mask_asset)
    if items.startswith(("http://", "https://")):
        earliest = config.since and _days_before(config.since, config.max_days)
        return search_items(items, ApiSearch(request.collections, request.bbox, earliest), assets)
    if request.collections or request.bbox:
        raise ConfigError(f"collections and bbox are what a STAC API is asked for; {items} is read as a whole.")
    if not items.lower().endswith(SUFFIXES):
        return read_items(items, assets)
    if assets != AssetChoice():
        raise ConfigError(f"assets are those of STAC items; {items} names its rasters in columns rasters and mask.")
    return read_footprints(items)


def _days_before(time: datetime, days: float) -> datetime | None:
    """`time` less `days`; None where that lies before all calendars."""
    try:
        return time - timedelta(days=days)
    except OverflowError:
        return None


def _fit_for_csv(reading: Reading) -> Reading:
    """`reading` without acquisitions whose paths a catalogue in CSV cannot hold."""
    fit, unusable = [], list(reading.unusable)
    for one in reading.acquisitions:
        if any(SEPARATOR in path for path in (*one.rasters, *one.masks)):
            detail = f"a path contains {SEPARATOR!r}, which CSV cannot hold; write a .parquet catalogue"
            unusable.append(
                LeftOut(id=one.id, collection=one.collection, where=one.where, reason=Reason.NO_ASSET, detail=detail)
            )
        else:
            fit.append(one)
    return Reading(fit, unusable, reading.copies)


def pair_acquisitions(acquisitions: Sequence[Acquisition], config: PairingConfig) -> Pairing:
    """Each acquisition with its best predecessor. The order of `acquisitions` does not matter.

    Their (collection, id) must be unique, as `acquisitions.collected` leaves them.
    """
    groups: dict[str, list[Acquisition]] = defaultdict(list)
    for one in acquisitions:
        groups["" if config.across_collections else one.collection or ""].append(one)
    rows: list[dict[str, Any]] = []
    left_out: list[LeftOut] = []
    older = 0
    for group in groups.values():
        predecessors = Predecessors(group, config)
        for number, after in enumerate(predecessors.acquisitions):
            if config.since is not None and after.time < config.since:
                older += 1
                continue
            found = predecessors.of(number)
            if isinstance(found, Acquisition):
                rows.append(_row(found, after))
            else:
                reason, detail = found
                left_out.append(
                    LeftOut(id=after.id, collection=after.collection, where=after.where, reason=reason, detail=detail)
                )
    rows.sort(key=lambda row: (row["after_time"], row["pair_id"]))
    left_out.sort(key=lambda one: (one.collection or "", one.id or ""))
    return Pairing(pa.Table.from_pylist(rows, schema=CATALOGUE), left_out, older)


def _row(before: Acquisition, after: Acquisition) -> dict[str, Any]:
    """One row of the catalogue."""
    return {
        "pair_id": pair_id(before, after),
        "before": before.rasters,
        "after": after.rasters,
        "before_time": before.time,
        "after_time": after.time,
        "before_mask": before.masks or None,
        "after_mask": after.masks or None,
    }


def pair_id(before: Acquisition, after: Acquisition) -> str:
    """The pair's name, in `catalogue.SAFE_ID`: both ids, and eight digits that tell apart what these do not.

    It depends on nothing but both ids and collections, so it is the same in every catalogue. The digits
    (of a SHA-256) differ where ids only differ in characters that a tile's name cannot hold, where they
    could be split in two ways, and between collections.
    """
    exact = json.dumps([[one.collection or "", one.id] for one in (before, after)])
    safe = [re.sub(r"[^A-Za-z0-9._-]+", "-", one.id) for one in (before, after)]
    return "__".join([*safe, hashlib.sha256(exact.encode()).hexdigest()[:8]])


def parsed_since(text: str, now: datetime) -> datetime:
    """A date, an ISO 8601 time, or `yesterday` (its first moment in UTC, seen from `now`) as a time in UTC.

    Raises `ConfigError` for anything else.
    """
    if text == "yesterday":
        return in_utc(now).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    try:
        return in_utc(datetime.fromisoformat(text))
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"since is {text!r}; a date, an ISO 8601 time, or yesterday is needed.") from error
