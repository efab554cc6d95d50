"""STAC items from files, folders and an API on the loopback, and everything that is no item."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pyarrow.fs as pafs
import pytest
import shapely

from hisem import storage
from hisem.archive import addresses
from hisem.archive.acquisitions import Reason
from hisem.archive.stac import ApiSearch, AssetChoice, read_items, search_items
from hisem.errors import AcquisitionsError, ConfigError, StorageError

SQUARE = shapely.box(0, 0, 1, 1)


def item(name: str = "a", **changes: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "c",
        "geometry": json.loads(shapely.to_geojson(SQUARE)),
        "bbox": list(SQUARE.bounds),
        "properties": {"datetime": "2024-05-01T10:00:00Z", "eo:cloud_cover": 12},
        "links": [],
        "assets": {"visual": {"href": f"./{name}.tif", "roles": ["visual"]}, "thumbnail": {"href": "t.png"}},
    } | changes


def asset(href: str, *roles: str) -> dict[str, Any]:
    return {"href": href, "roles": list(roles)}


def write(path: Path, document: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return str(path)


def collection_of(*items: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(items)}


def test_an_item_becomes_an_acquisition(tmp_path: Path) -> None:
    uri = write(tmp_path / "items" / "a.json", item())
    reading = read_items(uri, AssetChoice())
    (found,) = reading.acquisitions
    assert (reading.unusable, reading.copies) == ([], 0)
    assert vars(found) | {"footprint": None} == {
        "id": "a",
        "collection": "c",
        "time": datetime(2024, 5, 1, 10, tzinfo=UTC),
        "footprint": None,
        "rasters": (f"{tmp_path}/items/a.tif",),
        "masks": (),
        "cloud_cover": 12.0,
        "where": uri,
    }
    assert found.footprint.equals(SQUARE)


def test_file_collection_and_folder_hold_the_same(tmp_path: Path) -> None:
    items = [item("a"), item("b", assets={"visual": asset("s3://bucket/b.tif")}), item("c")]
    alone = [write(tmp_path / "one" / f"{number}.json", one) for number, one in enumerate(items)]
    together = write(tmp_path / "items.geojson", collection_of(*items))
    nested = tmp_path / "folder"
    write(nested / "catalog.json", {"type": "Catalog", "id": "x", "stac_version": "1.0.0", "links": []})
    write(nested / "c" / "collection.json", {"type": "Collection", "id": "c", "stac_version": "1.0.0"})
    write(nested / "c" / "a" / "a.json", items[0])
    write(nested / "c" / "more.GeoJSON", collection_of(*items[1:]))
    write(nested / "c" / "a" / "a.txt", "left alone")
    names = [read_items(uri, AssetChoice()).acquisitions[0].id for uri in alone]
    assert names == ["a", "b", "c"]
    for uri in (together, str(nested), str(tmp_path / "one"), f"file://{nested}/"):
        reading = read_items(uri, AssetChoice())
        assert [one.id for one in reading.acquisitions] == names
        assert reading.unusable == []
    first, second, third = read_items(str(nested), AssetChoice()).acquisitions
    assert [*first.rasters, *second.rasters, *third.rasters] == [
        f"{nested}/c/a/a.tif",
        "s3://bucket/b.tif",
        f"{nested}/c/c.tif",
    ]


def test_folders_far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    arrow = pafs.PyFileSystem(pafs.FSSpecHandler(memory))
    monkeypatch.setattr(storage, "filesystem", lambda uri: (arrow, "/" + storage.absolute(uri).removeprefix("mem://")))
    monkeypatch.setattr(addresses, "SCHEMES", ("s3", "mem"))
    try:
        assets = {"visual": asset("../pixels/a.tif"), "cloud": asset("s3://other/cloud.tif")}
        storage.write_bytes("mem://bucket/items/2024/a.json", json.dumps(item(assets=assets)).encode())
        (found,) = read_items("mem://bucket/items", AssetChoice(mask="cloud")).acquisitions
    finally:
        memory.rm("/bucket", recursive=True)
    assert found.where == "mem://bucket/items/2024/a.json"
    assert found.rasters == ("mem://bucket/items/pixels/a.tif",)
    assert found.masks == ("s3://other/cloud.tif",)


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"datetime": "2024-05-01T10:00:00"}, datetime(2024, 5, 1, 10, tzinfo=UTC)),
        (
            {"datetime": None, "start_datetime": "2024-05-01T12:00:00+02:00", "end_datetime": "2024-06-01T00:00:00Z"},
            datetime(2024, 5, 1, 10, tzinfo=UTC),
        ),
    ],
)
def test_times(tmp_path: Path, properties: dict[str, Any], expected: datetime) -> None:
    (found,) = read_items(write(tmp_path / "a.json", item(properties=properties)), AssetChoice()).acquisitions
    assert (found.time, found.cloud_cover) == (expected, None)


@pytest.mark.parametrize(
    ("assets", "choice", "expected"),
    [
        ({"data": asset("d", "data"), "visual": asset("v"), "x": asset("x", "visual")}, AssetChoice(), ["v"]),
        ({"data": asset("d", "data"), "x": asset("x", "visual", "data")}, AssetChoice(), ["x"]),
        ({"data": asset("d", "data"), "x": asset("x", "thumbnail")}, AssetChoice(), ["d"]),
        ({"d": asset("d", "data"), "m": asset("m", "data")}, AssetChoice(mask="m"), ["d"]),
        ({"image": {"href": "i"}}, AssetChoice(), ["i"]),
        ({"b": asset("b"), "a": asset("a"), "visual": asset("v")}, AssetChoice(("b", "a")), ["b", "a"]),
        ({"t_2": asset("2"), "x": asset("x"), "t_1": asset("1")}, AssetChoice(("t_*",)), ["2", "1"]),
        ({"t_1": asset("1"), "t_2": asset("2"), "t_m": asset("m")}, AssetChoice(("t_2", "t_*"), "t_m"), ["2", "1"]),
        ({"a[1]": asset("1"), "a1": asset("2")}, AssetChoice(("a[1]",)), ["1", "2"]),
    ],
)
def test_assets_with_the_pixels(
    tmp_path: Path, assets: dict[str, Any], choice: AssetChoice, expected: list[str]
) -> None:
    (found,) = read_items(write(tmp_path / "a.json", item(assets=assets)), choice).acquisitions
    assert found.rasters == tuple(f"{tmp_path}/{name}" for name in expected)


TWO_BANDS = {"B02": asset("2", "data"), "B03": asset("3", "data")}


@pytest.mark.parametrize(
    ("document", "choice", "reason", "told"),
    [
        (item(geometry=None), AssetChoice(), Reason.NO_GEOMETRY, "has no geometry"),
        (item(geometry={"type": "Polygon"}), AssetChoice(), Reason.NO_GEOMETRY, "cannot be read"),
        (item(geometry="here"), AssetChoice(), Reason.NO_GEOMETRY, "cannot be read"),
        (item(geometry={"type": "Point", "coordinates": [0, 0]}), AssetChoice(), Reason.NO_GEOMETRY, "without area"),
        (item(properties={}), AssetChoice(), Reason.NO_DATETIME, "no time"),
        (item(properties={"datetime": "soon"}), AssetChoice(), Reason.NO_DATETIME, "'soon' is not ISO 8601"),
        (item(properties={"datetime": 3}), AssetChoice(), Reason.NO_DATETIME, "3 is not ISO 8601"),
        (
            item(properties={"datetime": "2024-05-01", "eo:cloud_cover": "low"}),
            AssetChoice(),
            Reason.BAD_CLOUD_COVER,
            "'low' is not a percentage",
        ),
        (item(assets={}), AssetChoice(), Reason.NO_ASSET, "it has none"),
        (item(assets=TWO_BANDS), AssetChoice(), Reason.NO_ASSET, "2 assets have the role data (B02, B03)"),
        (
            item(assets={f"tile_{number:02}": asset(f"{number}.tif", "data") for number in range(12)}),
            AssetChoice(),
            Reason.NO_ASSET,
            "(tile_00, tile_01, tile_02, tile_03, tile_04, tile_05, tile_06, tile_07); name one with --assets, or all "
            "pieces of one mosaic by a pattern: --assets 'tile_*'",
        ),
        (
            item(assets={"N1_E2": asset("x"), "N1_E3": asset("y")}),
            AssetChoice(),
            Reason.NO_ASSET,
            "it has N1_E2, N1_E3: name one with --assets, or all pieces of one mosaic by a pattern: --assets 'N1_E*'",
        ),
        (item(assets={"x": asset("x"), "y": asset("y")}), AssetChoice(), Reason.NO_ASSET, "it has x, y: name one"),
        (item(assets=TWO_BANDS), AssetChoice(("B02", "B04")), Reason.NO_ASSET, "no asset B04; it has B02, B03"),
        (item(assets=TWO_BANDS), AssetChoice(("B0[4-9]",)), Reason.NO_ASSET, "no asset B0[4-9]; it has B02, B03"),
        (item(), AssetChoice(mask="cloud"), Reason.NO_ASSET, "no asset cloud; it has visual, thumbnail"),
        (
            item(assets={"visual": asset("https://x.example/a.tif?sig=abc")}),
            AssetChoice(),
            Reason.NO_ASSET,
            "https://x.example/a.tif?*** holds a password, key or signature",
        ),
        *(
            (item(assets={"visual": asset(href)}), AssetChoice(), Reason.NO_ASSET, "a raster is named by its path")
            for href in (
                "http://169.254.169.254/a.tif",
                "/vsicurl/http://x/a.tif",
                "ftp://x/a.tif",
                "zip:///a.zip!b.tif",
            )
        ),
        (item(assets={"visual": {}}), AssetChoice(), Reason.NOT_AN_ITEM, "not a STAC item"),
        (item(assets=["visual"]), AssetChoice(), Reason.NOT_AN_ITEM, "not a STAC item"),
        (item(links=[3]), AssetChoice(), Reason.NOT_AN_ITEM, "not a STAC item"),
        (item(assets={"visual": {"href": 3}}), AssetChoice(), Reason.NOT_AN_ITEM, "not a STAC item"),
        (item(properties=None), AssetChoice(), Reason.NOT_AN_ITEM, "lacks id or properties"),
        (item(id=None), AssetChoice(), Reason.NOT_AN_ITEM, "lacks id or properties"),
        ({"type": "Feature"}, AssetChoice(), Reason.NOT_AN_ITEM, "lacks id or properties"),
        (None, AssetChoice(), Reason.NOT_AN_ITEM, "lacks id or properties"),
        ([item()], AssetChoice(), Reason.NOT_AN_ITEM, "lacks id or properties"),
    ],
)
def test_items_that_cannot_be_used(
    tmp_path: Path, document: Any, choice: AssetChoice, reason: Reason, told: str
) -> None:
    fine = item("fine", assets=dict.fromkeys(("B02", "B04", "cloud", "visual"), asset("x.tif")))
    uri = write(tmp_path / "items.json", collection_of(document, fine))
    reading = read_items(uri, choice)
    assert [one.id for one in reading.acquisitions] == ["fine"]
    (lost,) = reading.unusable
    assert (lost.reason, lost.where) == (reason, uri)
    assert told in lost.detail
    assert lost.id == (document.get("id") if isinstance(document, dict) else None)


def test_broken_files_in_a_folder_are_told_and_the_rest_is_read(tmp_path: Path) -> None:
    whole = json.dumps(item("cut"))
    write(tmp_path / "a.json", item("a"))
    write(tmp_path / "cut.json", whole[: len(whole) // 2])
    write(tmp_path / "empty.json", "")
    write(tmp_path / "list.json", [item("x")])
    write(tmp_path / "other.json", {"tiles": 3})
    write(tmp_path / "deep.json", "[" * 100_000)
    nested = json.dumps(item("nested"))
    for number, key in enumerate(('"properties": {', '"coordinates": ')):
        deep = f'"x": {"[" * 20_000}{"]" * 20_000}, ' if number == 0 else "[" * 20_000 + "]" * 20_000 + ', "x": '
        write(tmp_path / f"nested_{number}.json", nested.replace(key, key + deep, 1))
    (tmp_path / "binary.json").write_bytes(b"\x89PNG\xff\xfe")
    write(tmp_path / "secret.json", item("s"))
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere.json")
    (tmp_path / "secret.json").chmod(0)
    readable = {"s"} if (tmp_path / "secret.json").stat().st_uid == 0 else set()
    reading = read_items(str(tmp_path), AssetChoice())
    assert {one.id for one in reading.acquisitions} - readable == {"a"}
    reasons = {Path(one.where).name: one.reason for one in reading.unusable if "secret" not in one.where}
    assert reasons == {
        "binary.json": Reason.UNREADABLE,
        "cut.json": Reason.UNREADABLE,
        "deep.json": Reason.UNREADABLE,
        "nested_0.json": Reason.UNREADABLE,
        "nested_1.json": Reason.UNREADABLE,
        "empty.json": Reason.UNREADABLE,
        "list.json": Reason.NOT_AN_ITEM,
        "other.json": Reason.NOT_AN_ITEM,
    }
    (cut,) = (one for one in reading.unusable if one.where.endswith("cut.json"))
    assert "not valid JSON" in cut.detail


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (json.dumps(collection_of(item()))[:-20], "not valid JSON"),
        ({"type": "Feature collection"}, "neither a STAC item nor a collection of items"),
        ({"type": "FeatureCollection", "features": {}}, "neither a STAC item nor a collection of items"),
    ],
)
def test_a_single_file_that_holds_no_items_is_an_error(tmp_path: Path, document: Any, told: str) -> None:
    uri = write(tmp_path / "items.json", document)
    with pytest.raises(AcquisitionsError, match=f"{uri}: {told}"):
        read_items(uri, AssetChoice())


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AcquisitionsError, match=f"{tmp_path}: no STAC items in this folder"):
        read_items(str(tmp_path), AssetChoice())
    write(tmp_path / "catalog.json", {"type": "Catalog", "id": "x", "stac_version": "1.0.0"})
    with pytest.raises(AcquisitionsError, match="no STAC items in this folder"):
        read_items(str(tmp_path), AssetChoice())
    with pytest.raises(AcquisitionsError, match=r"catalog\.json: a STAC catalog or collection"):
        read_items(f"{tmp_path}/catalog.json", AssetChoice())
    with pytest.raises(StorageError, match="cannot be read"):
        read_items(f"{tmp_path}/absent.json", AssetChoice())
    empty = read_items(write(tmp_path / "none.json", collection_of()), AssetChoice())
    assert (empty.acquisitions, empty.unusable) == ([], [])


class Api(ThreadingHTTPServer):
    """A STAC API that answers each search with all its items, one a page, and remembers what it was asked."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), ApiHandler)
        self.items = items
        self.asked: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def landing_page(self) -> dict[str, Any]:
        links = [
            {"rel": "self", "href": self.url},
            {"rel": "root", "href": self.url},
            {"rel": "search", "href": f"{self.url}/search", "type": "application/geo+json", "method": "POST"},
        ]
        parts = [f"https://api.stacspec.org/v1.0.0/{part}" for part in ("core", "item-search")]
        head = {"type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "of a test"}
        return head | {"conformsTo": parts, "links": links}

    def page(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(asked)
        number = asked.get("token", 0)
        links = []
        if number + 1 < len(self.items):
            links = [
                {
                    "rel": "next",
                    "href": f"{self.url}/search",
                    "method": "POST",
                    "body": {"token": number + 1},
                    "merge": True,
                }
            ]
        return collection_of(*self.items[number : number + 1]) | {"links": links}


class ApiHandler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        self.answer(self.server.landing_page())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(self.server.page(json.loads(body)))

    def answer(self, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/geo+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """The test's output stays clean."""


@pytest.fixture
def api() -> Iterator[Api]:
    links = [{"rel": "self", "href": "https://host/c/items/b"}]
    server = Api([item("a", assets={"visual": asset("s3://x/a.tif")}), item("b", links=links), item("lost")])
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_api_is_searched_to_its_last_page(api: Api) -> None:
    pytest.importorskip("pystac_client")
    earliest = datetime(2024, 1, 2, 3, tzinfo=UTC)
    reading = search_items(api.url, ApiSearch(("c", "d"), (-1, -2, 3, 4), earliest), AssetChoice())
    first, second = reading.acquisitions
    assert (first.rasters, second.rasters) == (("s3://x/a.tif",), ("https://host/c/items/b.tif",))
    assert {one.where for one in reading.acquisitions} == {api.url}
    (lost,) = reading.unusable
    assert (lost.id, lost.reason) == ("lost", Reason.NO_ASSET)
    assert "'./lost.tif', relative to nothing" in lost.detail
    assert len(api.asked) == 3
    for asked in api.asked:
        assert asked["collections"] == ["c", "d"]
        assert asked["bbox"] == [-1, -2, 3, 4]
        assert asked["datetime"] == "2024-01-02T03:00:00Z/.."


def test_an_api_is_asked_for_all_times_and_places(api: Api) -> None:
    pytest.importorskip("pystac_client")
    search_items(api.url, ApiSearch(("c",)), AssetChoice())
    assert not {"bbox", "datetime"} & set(api.asked[0])


def test_an_api_that_is_none(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pystac_client")
    monkeypatch.setattr(api, "page", lambda asked: {"features": 3})
    with pytest.raises(AcquisitionsError, match=f"{api.url}: no answer as of a STAC API"):
        search_items(api.url, ApiSearch(("c",)), AssetChoice())
    monkeypatch.setattr(api, "landing_page", lambda: {"hello": "world"})
    with pytest.raises(AcquisitionsError, match=f"{api.url}: no answer as of a STAC API"):
        search_items(api.url, ApiSearch(("c",)), AssetChoice())


def test_an_api_that_is_silent(api: Api) -> None:
    pytest.importorskip("pystac_client")
    api.shutdown()
    api.server_close()
    with pytest.raises(AcquisitionsError, match=f"{api.url}: no answer as of a STAC API"):
        search_items(api.url, ApiSearch(("c",)), AssetChoice())


def test_without_pystac_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pystac_client", None)
    with pytest.raises(AcquisitionsError, match=r"needs pystac-client; install it with pip install 'hisem\[stac\]'"):
        search_items("https://host/api", ApiSearch(("c",)), AssetChoice())


def test_an_api_is_not_read_as_a_whole() -> None:
    with pytest.raises(ConfigError, match="name those to pair with --collections"):
        ApiSearch(())
