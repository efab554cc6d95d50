"""STAC items as acquisitions: from a file, from a folder of files, or from an API."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from posixpath import commonprefix
from typing import Any

import pystac
import shapely

from hisem import storage
from hisem.archive.acquisitions import (
    Acquisition,
    LeftOut,
    Reading,
    Reason,
    Unusable,
    acquisition_or_reason,
    checked_cloud_cover,
    checked_footprint,
    checked_id,
    checked_raster,
    checked_time,
    collected,
)
from hisem.archive.geometries import parsed
from hisem.errors import AcquisitionsError, ConfigError, StorageError

LINES = (".ndjson", ".jsonl", ".geojsonl", ".geojsons")
SUFFIXES = (".json", ".geojson", *LINES)
READERS = 16
"""Files that are read at once; in an object store each takes its time to answer."""
BATCH = 1024
"""Files whose content is held at once."""

MALFORMED = (pystac.STACError, pystac.STACTypeError, ValueError, TypeError, KeyError, AttributeError)
"""What pystac raises for JSON that is no item."""


@dataclass(frozen=True)
class AssetChoice:
    """Which of an item's assets are read."""

    pixels: tuple[str, ...] = ()
    """Names of assets, pieces of one mosaic, or patterns such as `tile_*` for as many as there are. None given: the
    asset named `visual`, else the only one with role `visual`, else the only one with role `data`, else the only
    asset."""
    mask: str | None = None
    """Name of the asset whose non-zero pixels are invalid."""


@dataclass(frozen=True)
class ApiSearch:
    """What an API is asked for."""

    collections: tuple[str, ...]
    """At least one."""
    bbox: tuple[float, float, float, float] | None = None
    """West, south, east, north in degrees; None for everywhere."""
    earliest: datetime | None = None
    """Items from then on; None for all times."""

    def __post_init__(self) -> None:
        if not self.collections:
            raise ConfigError("A STAC API holds many collections; name those to pair with --collections.")


def read_items(uri: str, assets: AssetChoice) -> Reading:
    """The acquisitions in an ItemCollection file, an item file, or a folder of either (also below it).

    In a folder, files that are broken or no items become `unusable`; catalogs and collections are passed
    over. Relative hrefs are taken from the item's file.

    Raises `AcquisitionsError` where a single file is broken or no items, or a folder holds none;
    `StorageError` where it cannot be read.
    """
    uri = storage.absolute(uri)
    if storage.is_folder(uri):
        found = [one for file, content in _files(uri) for one in _acquisitions(file, content, assets)]
        if not found:
            raise AcquisitionsError(f"{uri}: no STAC items in this folder ({' or '.join(SUFFIXES)}); name theirs.")
    else:
        try:
            documents = _items(storage.read_bytes(uri))
        except Unusable as error:
            raise AcquisitionsError(f"{uri}: {error.detail}.") from error
        if documents is None:
            raise AcquisitionsError(f"{uri}: a STAC catalog or collection, which only links to items; name its folder.")
        found = [_acquisition(document, uri, uri, assets) for document in documents]
    return collected(found)


def search_items(url: str, search: ApiSearch, assets: AssetChoice) -> Reading:
    """The acquisitions that a STAC API at `url` has for `search`.

    Raises `AcquisitionsError` where pystac-client is not installed or the API does not answer as one.
    """
    try:
        import pystac_client
        from pystac_client.errors import ClientTypeError
        from pystac_client.exceptions import APIError
    except ImportError as error:
        raise AcquisitionsError(
            f"{url}: reading a STAC API needs pystac-client; install it with pip install 'hisem[stac]'."
        ) from error
    time = None if search.earliest is None else f"{search.earliest.isoformat().replace('+00:00', 'Z')}/.."
    try:
        client = pystac_client.Client.open(url)
        answer = client.search(collections=list(search.collections), bbox=search.bbox, datetime=time)
        documents = list(answer.items_as_dicts())
    # Services answer in many wrong ways, and pystac-client has no base for what it raises then.
    except (APIError, ClientTypeError, NotImplementedError, OSError, *MALFORMED) as error:
        raise AcquisitionsError(f"{url}: no answer as of a STAC API ({error}).") from error
    return collected(_acquisition(document, url, None, assets) for document in documents)


def _files(folder: str) -> Iterator[tuple[str, bytes | OSError]]:
    """Every JSON file below `folder` with its content, or with what keeps it from being read."""
    fs, root = storage.filesystem(folder)

    def content(path: str) -> bytes | OSError:
        try:
            with fs.open_input_stream(path) as stream:
                return stream.read()
        except OSError as error:
            return error

    paths = [path for path in storage.list_files(folder) if path.lower().endswith(SUFFIXES)]
    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(paths), BATCH):
            batch = paths[first : first + BATCH]
            for path, read in zip(batch, pool.map(content, batch), strict=True):
                yield storage.join(folder, path[len(root) :]), read


def _acquisitions(file: str, content: bytes | OSError, assets: AssetChoice) -> list[Acquisition | LeftOut]:
    """What one file of a folder holds."""
    try:
        return [_acquisition(document, file, file, assets) for document in _items(content) or ()]
    except Unusable as error:
        return [LeftOut(id=None, collection=None, where=file, reason=error.reason, detail=error.detail)]


def _items(content: bytes | OSError) -> list[Any] | None:
    """The items in a file, as JSON has them; None for a catalog or collection.

    Raises `Unusable` where the file holds something else.
    """
    if isinstance(content, OSError):
        raise Unusable(Reason.UNREADABLE, f"cannot be read ({content})")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        if (lines := _lines(content)) is not None:
            return lines
        raise Unusable(Reason.UNREADABLE, f"not valid JSON ({error}); copy the file again") from error
    kind = document.get("type") if isinstance(document, dict) else type(document).__name__
    if kind == "Feature":
        return [document]
    if kind == "FeatureCollection" and isinstance(document.get("features"), list):
        return document["features"]
    if kind in ("Catalog", "Collection") and "stac_version" in document:
        return None
    raise Unusable(Reason.NOT_AN_ITEM, f"neither a STAC item nor a collection of items (type {kind!r})")


def _lines(content: bytes) -> list[Any] | None:
    """The documents of newline-delimited JSON, text in place of a line that is none; None for any other content."""
    lines = [line for line in content.splitlines() if line.strip()]
    documents: list[Any] = []
    for line in lines:
        try:
            documents.append(json.loads(line))
        except (ValueError, RecursionError):
            documents.append(line.decode(errors="replace"))
    is_delimited = len(lines) > 1 and isinstance(documents[0], dict) and documents[0].get("type") == "Feature"
    return documents if is_delimited else None


def _acquisition(document: Any, where: str, href: str | None, assets: AssetChoice) -> Acquisition | LeftOut:
    """One item of JSON as an acquisition, or why it is none.

    Its hrefs are relative to `href`, or to its own link `self` where that is None.
    """
    plain = document if isinstance(document, dict) else {}
    item_id, collection = (str(plain[key]) if plain.get(key) else None for key in ("id", "collection"))

    def acquisition() -> Acquisition:
        if item_id is None or not isinstance(plain.get("properties"), dict):
            raise Unusable(Reason.NOT_AN_ITEM, "not a STAC item: it lacks id or properties")
        properties = plain["properties"]
        # Before pystac sees it, which has one error for all that is wrong.
        time = checked_time(properties.get("datetime") or properties.get("start_datetime"))
        footprint = checked_footprint(_geometry(plain.get("geometry")))
        cloud_cover = checked_cloud_cover(properties.get("eo:cloud_cover"))
        try:
            item = pystac.Item.from_dict(plain, href=href, migrate=False, preserve_dict=False)
        except MALFORMED as error:
            raise Unusable(Reason.NOT_AN_ITEM, f"not a STAC item ({error})") from error
        return Acquisition(
            id=checked_id(item_id),
            collection=collection and checked_id(collection),
            time=time,
            footprint=footprint,
            rasters=tuple(_href(item, name) for name in _pixel_assets(item.assets, assets)),
            masks=(_href(item, assets.mask),) if assets.mask else (),
            cloud_cover=cloud_cover,
            where=where,
        )

    return acquisition_or_reason(acquisition, item_id, collection, where)


def _geometry(geometry: Any) -> shapely.Geometry | None:
    """GeoJSON as a geometry. Raises `Unusable` where it is none."""
    try:
        return parsed(geometry if isinstance(geometry, dict) or geometry is None else {"type": str(geometry)[:40]})
    except ValueError as error:
        raise Unusable(Reason.NO_GEOMETRY, f"its geometry cannot be read: {error}") from error


def _pixel_assets(assets: Mapping[str, pystac.Asset], choice: AssetChoice) -> list[str]:
    """Names of the assets that `choice` means, in its order; what a pattern matches in the item's order.

    Raises `Unusable` where a name or pattern matches none.
    """
    if not choice.pixels:
        return [_default_asset(assets, choice.mask)]
    found: dict[str, None] = {}  # each once, in order
    for wanted in choice.pixels:
        names = [name for name in assets if name == wanted or (fnmatchcase(name, wanted) and name != choice.mask)]
        if not names:
            raise Unusable(Reason.NO_ASSET, f"no asset {wanted}; {_told(assets)}")
        found |= dict.fromkeys(names)
    return list(found)


def _default_asset(assets: Mapping[str, pystac.Asset], mask: str | None) -> str:
    """The asset that `AssetChoice` describes. Raises `Unusable` where that is none or several."""
    candidates = {name: asset for name, asset in assets.items() if name != mask}
    if "visual" in candidates:
        return "visual"
    for role in ("visual", "data"):
        names = [name for name, asset in candidates.items() if asset.has_role(role)]
        if len(names) == 1:
            return names[0]
        if names:
            raise Unusable(
                Reason.NO_ASSET,
                f"{len(names)} assets have the role {role} ({', '.join(names[:8])}); name one with --assets"
                + _pattern(names),
            )
    if len(candidates) == 1:
        return next(iter(candidates))
    raise Unusable(Reason.NO_ASSET, f"no asset is plainly the image; {_told(assets)}")


def _href(item: pystac.Item, name: str) -> str:
    """The absolute href of an asset. Raises `Unusable` where the item lacks it."""
    if name not in item.assets:
        raise Unusable(Reason.NO_ASSET, f"no asset {name}; {_told(item.assets)}")
    href = item.assets[name].get_absolute_href()
    if not href:
        raise Unusable(Reason.NO_ASSET, f"asset {name} has the href {item.assets[name].href!r}, relative to nothing")
    try:
        return checked_raster(storage.absolute(href))
    except StorageError as error:
        raise Unusable(Reason.NO_ASSET, str(error)) from error


def _told(assets: Mapping[str, pystac.Asset]) -> str:
    names = list(assets)
    return f"it has {', '.join(names[:8])}: name one with --assets{_pattern(names)}" if names else "it has none"


def _pattern(names: Sequence[str]) -> str:
    """How all of `names` are named together, where they look like the pieces of one mosaic; else nothing."""
    start = commonprefix(names).rstrip("0123456789")
    numbered = len(names) > 1 and start and all(re.fullmatch(r"[\d_-]*\d", name[len(start) :]) for name in names)
    return f", or all pieces of one mosaic by a pattern: --assets {shlex.quote(f'{start}*')}" if numbered else ""
