"""Pairing against a brute-force matcher, and the whole way from items to the catalogue."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.csv as pacsv
import pytest
import shapely

from hisem import storage
from hisem.archive.acquisitions import Acquisition, Reason
from hisem.archive.catalogue import SAFE_ID, read_catalogue
from hisem.archive.footprints import repaired
from hisem.archive.pairing import WHOLE_ARCHIVE, PairRequest, pair_acquisitions, pair_archive, pair_id, parsed_since
from hisem.archive.predecessors import PairingConfig
from hisem.archive.stac import AssetChoice
from hisem.errors import AcquisitionsError, CatalogueError, ConfigError, HisemError
from hisem.schemas import CATALOGUE

START = datetime(2024, 1, 1, tzinfo=UTC)
WIDE = PairingConfig(min_overlap=0.5, min_days=0, max_days=1000, max_cloud=100)
ANY = PairRequest(min_overlap=0.5, min_days=0, max_days=1000, max_cloud=100)


def acquisition(
    name: str,
    day: float = 0.0,
    *,
    box: tuple[float, float, float, float] = (0, 0, 1, 1),
    collection: str | None = "c",
    cloud: float | None = 0.0,
) -> Acquisition:
    return Acquisition(
        id=name,
        collection=collection,
        time=START + timedelta(days=day),
        footprint=repaired(shapely.box(*box)),
        rasters=(f"/{name}.tif",),
        cloud_cover=cloud,
        where="/items.json",
    )


@dataclass(frozen=True)
class Scene:
    """What the brute-force matcher knows of an acquisition: a box, whose east may lie beyond 180."""

    id: str
    collection: str
    day: float
    box: tuple[float, float, float, float]
    cloud: float | None


def ground(scene: Scene) -> float:
    west, south, east, north = scene.box
    return (east - west) * (math.sin(math.radians(north)) - math.sin(math.radians(south)))


def overlap(after: Scene, before: Scene) -> float:
    south, north = max(after.box[1], before.box[1]), min(after.box[3], before.box[3])
    if north <= south:
        return 0.0
    width = sum(
        max(0.0, min(after.box[2], before.box[2] + turn) - max(after.box[0], before.box[0] + turn))
        for turn in (-360, 0, 360)
    )
    return width * (math.sin(math.radians(north)) - math.sin(math.radians(south))) / ground(after)


def brute_force(scenes: list[Scene], config: PairingConfig) -> dict[tuple[str, str], tuple[str, str] | Reason]:
    """The predecessor of each scene, or why it has none, by looking at all pairs."""
    found: dict[tuple[str, str], tuple[str, str] | Reason] = {}
    for after in scenes:
        if config.since is not None and START + timedelta(days=after.day) < config.since:
            continue
        if after.cloud is not None and after.cloud > config.max_cloud:
            found[after.collection, after.id] = Reason.TOO_CLOUDY
            continue
        left = [
            one
            for one in scenes
            if (config.across_collections or one.collection == after.collection) and one.day < after.day
        ]
        reason = None
        for criterion, name in (
            (lambda one, after=after: overlap(after, one) > 0, Reason.NO_PREDECESSOR),
            (
                lambda one, after=after: config.min_days <= after.day - one.day <= config.max_days,
                Reason.NO_PREDECESSOR_IN_TIME,
            ),
            (lambda one: one.cloud is None or one.cloud <= config.max_cloud, Reason.NO_CLEAR_PREDECESSOR),
            (lambda one, after=after: overlap(after, one) >= config.min_overlap, Reason.NO_OVERLAPPING_PREDECESSOR),
        ):
            left = [one for one in left if criterion(one)]
            if not left and reason is None:
                reason = name
        if reason is not None:
            found[after.collection, after.id] = reason
            continue
        best = min(
            left,
            key=lambda one: (math.inf if one.cloud is None else one.cloud, -one.day, one.id, one.collection),
        )
        found[after.collection, after.id] = best.collection, best.id
    return found


def random_scenes(seed: int, count: int = 120) -> list[Scene]:
    """Scenes on three spots (one at 65 degrees north, one over the antimeridian), with ties in every criterion."""
    dice = random.Random(seed)
    scenes: list[Scene] = []
    for number in range(count):
        west, south = dice.choice([(10.0, 64.0), (178.5, -1.0), (-60.0, 20.0)])
        west, south = west + dice.uniform(0, 2), south + dice.uniform(0, 2)
        box = (west, south, west + dice.uniform(0.5, 2), south + dice.uniform(0.5, 2))
        if dice.random() < 0.3 and scenes:
            box = dice.choice(scenes).box  # the same footprint again
        cloud = dice.choice([None, 0.0, 10.0, float(dice.randint(0, 100))])
        day = dice.choice([float(dice.randint(0, 400)), dice.uniform(0, 400)])
        scenes.append(Scene(f"s{number % 90}", "ab"[number // 90], day, box, cloud))
    return scenes


def paired(acquisitions: list[Acquisition], config: PairingConfig) -> dict[tuple[str, str], Any]:
    """What `pair_acquisitions` finds, in the words of `brute_force`."""
    names = {one.rasters: (str(one.collection), one.id) for one in acquisitions}
    pairing = pair_acquisitions(acquisitions, config)
    found: dict[tuple[str, str], Any] = {
        names[tuple(row["after"])]: names[tuple(row["before"])] for row in pairing.catalogue.to_pylist()
    }
    found |= {(str(one.collection), str(one.id)): one.reason for one in pairing.left_out}
    assert len(found) + pairing.older == len(acquisitions)
    return found


CONFIGS = [
    WIDE,
    PairingConfig(min_overlap=0.3, min_days=10, max_days=120, max_cloud=30),
    PairingConfig(min_overlap=0.9, min_days=0, max_days=400, max_cloud=60, across_collections=True),
    PairingConfig(min_overlap=1.0, min_days=5, max_days=50, max_cloud=100),
    PairingConfig(min_overlap=0.2, min_days=1, max_days=30, max_cloud=5, since=START + timedelta(days=200)),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("seed", range(4))
def test_pairs_and_reasons_are_those_of_brute_force(seed: int, config: PairingConfig) -> None:
    scenes = random_scenes(seed)
    acquisitions = [
        replace(
            acquisition(scene.id, scene.day, box=scene.box, collection=scene.collection, cloud=scene.cloud),
            rasters=(f"/{scene.collection}/{scene.id}.tif",),
        )
        for scene in scenes
    ]
    expected = brute_force(scenes, replace(config, min_overlap=config.min_overlap - 1e-9))
    assert paired(acquisitions, config) == expected


def test_the_random_scenes_meet_every_reason() -> None:
    met = {
        found if isinstance(found, Reason) else "pair"
        for config in CONFIGS
        for seed in range(4)
        for found in brute_force(random_scenes(seed), config).values()
    }
    assert met == {
        "pair",
        Reason.TOO_CLOUDY,
        Reason.NO_PREDECESSOR,
        Reason.NO_PREDECESSOR_IN_TIME,
        Reason.NO_CLEAR_PREDECESSOR,
        Reason.NO_OVERLAPPING_PREDECESSOR,
    }


def test_least_cloud_then_nearest_then_id() -> None:
    after = acquisition("z", 100)
    order = [
        acquisition("clear", 1, cloud=1),
        acquisition("later", 50, cloud=5),
        acquisition("a", 40, cloud=5),
        acquisition("b", 40, cloud=5),
        acquisition("unknown", 99, cloud=None),
    ]
    for first in range(len(order)):
        left = order[first:]
        random.Random(first).shuffle(left)
        assert paired([after, *left], WIDE)["c", "z"] == ("c", order[first].id)


def test_limits_are_part_of_what_they_limit() -> None:
    config = PairingConfig(min_overlap=0.5, min_days=10, max_days=20, max_cloud=30)
    for day, cloud, width, good in [
        (10.0, 30.0, 0.5, True),
        (20.0, 30.0, 0.5, True),
        (10 - 1e-6, 30.0, 0.5, False),
        (20 + 1e-6, 30.0, 0.5, False),
        (10.0, 30.01, 0.5, False),
        (10.0, 30.0, 0.499, False),
    ]:
        before = acquisition("b", cloud=cloud, box=(0, 0, width, 1))
        found = paired([before, acquisition("z", day, cloud=30)], config)
        assert (found["c", "z"] == ("c", "b")) is good, (day, cloud, width)


def test_the_fraction_is_of_the_newer_footprint() -> None:
    small, large = acquisition("small", 0, box=(0, 0, 1, 1)), acquisition("large", 1, box=(0, 0, 3, 1))
    assert paired([small, large], WIDE)["c", "large"] == Reason.NO_OVERLAPPING_PREDECESSOR
    assert paired([replace(small, time=large.time), replace(large, time=small.time)], WIDE)["c", "small"] == (
        "c",
        "large",
    )


def test_what_was_taken_at_the_same_time_precedes_nothing() -> None:
    found = paired([acquisition("a", 5), acquisition("b", 5)], WIDE)
    assert set(found.values()) == {Reason.NO_PREDECESSOR}


@pytest.mark.parametrize(
    ("others", "detail"),
    [
        ([], "no earlier acquisition covers any of it"),
        ([{"day": 95}, {"day": 40}], "2 earlier acquisitions, 5 to 60 days before, none of them 10 to 50 days"),
        (
            [{"day": 80, "cloud": 45.5}, {"day": 85, "cloud": 90}, {"day": 99}],
            "2 earlier acquisitions in time, least cloud cover 45.5 % > 30 %",
        ),
        (
            [{"day": 80, "box": (0.88, 0, 2, 1)}, {"day": 80, "cloud": 90}],
            "1 earlier acquisition in time and clear, best overlap 12 % < 50 %",
        ),
        ([{"day": 80, "box": (1, 0, 2, 1)}, {"day": 80, "collection": "d"}], "no earlier acquisition covers any of it"),
    ],
)
def test_the_reason_names_what_was_missing_in_numbers(others: list[dict[str, Any]], detail: str) -> None:
    config = PairingConfig(min_overlap=0.5, min_days=10, max_days=50, max_cloud=30)
    acquisitions = [acquisition(f"o{number}", **other) for number, other in enumerate(others)]
    pairing = pair_acquisitions([acquisition("z", 100), *acquisitions], config)
    assert {one.id: one.detail for one in pairing.left_out}["z"] == detail


def test_a_cloudy_acquisition_is_told_its_clouds() -> None:
    (lost,) = pair_acquisitions([acquisition("a", cloud=33.333333)], PairingConfig(max_cloud=20)).left_out
    assert (lost.reason, lost.detail) == (Reason.TOO_CLOUDY, "cloud cover 33.33 % > 20 %")


def test_older_ones_still_serve() -> None:
    acquisitions = [acquisition("a", 0), acquisition("b", 1), acquisition("c", 2)]
    pairing = pair_acquisitions(acquisitions, replace(WIDE, since=START + timedelta(days=2)))
    assert pairing.catalogue.column("before").to_pylist() == [["/b.tif"]]
    assert (pairing.older, pairing.left_out) == (2, [])


def test_rows_of_the_catalogue() -> None:
    before = replace(acquisition("a", 0), rasters=("/1.tif", "/2.tif"), masks=("/m.tif",))
    after = acquisition("b", 1)
    pairing = pair_acquisitions([after, before], WIDE)
    assert pairing.catalogue.schema == CATALOGUE
    assert pairing.catalogue.to_pylist() == [
        {
            "pair_id": pair_id(before, after),
            "before": ["/1.tif", "/2.tif"],
            "after": ["/b.tif"],
            "before_time": START,
            "after_time": START + timedelta(days=1),
            "split": None,
            "before_mask": ["/m.tif"],
            "after_mask": None,
        }
    ]


def test_pair_ids_are_safe_and_stay_apart() -> None:
    pairs = [
        ("a b", "c"),
        ("a/b", "c"),
        ("a-b", "c"),
        ("a", "b__c"),
        ("a__b", "c"),
        ("東京", "/"),
        ("..", "."),
    ]
    ids = [pair_id(acquisition(before), acquisition(after)) for before, after in pairs]
    ids.append(pair_id(acquisition("a b", collection="d"), acquisition("c", collection="d")))
    ids.append(pair_id(acquisition("a b", collection=None), acquisition("c", collection=None)))
    assert len(set(ids)) == len(ids)
    assert all(SAFE_ID.fullmatch(one) for one in ids)
    assert ids[0].startswith("a-b__c__")


def test_pair_ids_do_not_change() -> None:
    """Captions are kept by them: other digits would caption every archive anew."""
    assert pair_id(acquisition("S2A_20240101"), acquisition("S2B_20240301")) == "S2A_20240101__S2B_20240301__b56680d1"


@pytest.mark.parametrize(
    "values",
    [
        {"min_overlap": 0.0},
        {"min_overlap": 1.01},
        {"min_overlap": math.nan},
        {"min_days": -1.0},
        {"min_days": 10.0, "max_days": 9.0},
        {"max_days": 1e9},
        {"max_days": math.nan},
        {"max_cloud": -1.0},
        {"max_cloud": 101.0},
    ],
)
def test_limits_that_make_no_sense(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        PairingConfig(**values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yesterday", datetime(2024, 2, 29, tzinfo=UTC)),
        ("2024-02-01", datetime(2024, 2, 1, tzinfo=UTC)),
        ("2024-02-01T10:00:00", datetime(2024, 2, 1, 10, tzinfo=UTC)),
        ("2024-02-01T10:00:00+02:00", datetime(2024, 2, 1, 8, tzinfo=UTC)),
    ],
)
def test_since(text: str, expected: datetime) -> None:
    assert parsed_since(text, datetime(2024, 3, 1, 0, 30, tzinfo=UTC)) == expected


def test_since_beyond_calendars_is_refused() -> None:
    with pytest.raises(ConfigError, match="since is '0001-01-01T00:00:00"):
        parsed_since("0001-01-01T00:00:00+14:00", datetime.now(UTC))


def test_since_that_is_no_time() -> None:
    with pytest.raises(ConfigError, match="since is 'tomorrow'; a date, an ISO 8601 time, or yesterday"):
        parsed_since("tomorrow", START)


def test_a_request_says_what_makes_a_pair() -> None:
    limits: dict[str, Any] = {
        "min_overlap": 0.3,
        "min_days": 1.0,
        "max_days": 9.0,
        "max_cloud": 5.0,
        "across_collections": True,
    }
    request = PairRequest(**limits, since="yesterday", assets=("x",))
    assert request.config(START + timedelta(days=1)) == PairingConfig(**limits, since=START)
    assert request.changed() == {"assets": ("x",), **limits, "since": "yesterday"}
    assert (WHOLE_ARCHIVE.config(START), WHOLE_ARCHIVE.changed()) == (PairingConfig(), {})


def item(name: str, day: int, **changes: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "c",
        "geometry": json.loads(shapely.to_geojson(shapely.box(0, 0, 1, 1))),
        "bbox": [0, 0, 1, 1],
        "properties": {"datetime": (START + timedelta(days=day)).isoformat(), "eo:cloud_cover": day % 7},
        "links": [],
        "assets": {"visual": {"href": f"{name}.tif"}, "cloud": {"href": f"{name}_cloud.tif"}},
    } | changes


def write_items(path: Path, *items: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return str(path)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_same_items_in_any_order_give_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    items = [item(f"i{number}", 5 * number) for number in range(30)]
    items += [
        item("i3", 200),
        item("i3", 15),
        item("lost", 3, geometry=None),
        item("gone", 3, geometry=None),
        item("two", 4, collection="d"),
    ]
    written = set()
    for seed in range(3):
        random.Random(seed).shuffle(items)
        uri = write_items(tmp_path / "items.json", *items)
        summary = pair_archive(uri, f"{tmp_path}/{seed}/c.{suffix}", ANY, START)
        written.add(tuple(storage.read_bytes(file) for file in (summary.output, summary.left_out_table)))
    assert len(written) == 1


def test_from_items_to_a_catalogue_that_reads_back(tmp_path: Path) -> None:
    uri = write_items(tmp_path / "in" / "items.json", item("a", 0), item("b", 40), item("lost", 1, geometry=None))
    summary = pair_archive(uri, f"{tmp_path}/out/pairs.parquet", PairRequest(mask_asset="cloud"), START)
    (row,) = read_catalogue(summary.output).to_pylist()
    assert (row["before"], row["after"]) == ([f"{tmp_path}/in/a.tif"], [f"{tmp_path}/in/b.tif"])
    assert (row["before_mask"], row["after_mask"]) == ([f"{tmp_path}/in/a_cloud.tif"], [f"{tmp_path}/in/b_cloud.tif"])
    assert (summary.acquisitions, summary.pairs, summary.unusable, summary.older) == (2, 1, 1, 0)
    assert summary.reasons == {"no_geometry": 1, "no_predecessor": 1}
    assert summary.left_out_table == f"{tmp_path}/out/pairs.left_out.csv"
    assert pacsv.read_csv(summary.left_out_table).to_pylist() == [
        {"id": "lost", "collection": "c", "reason": "no_geometry", "detail": "it has no geometry", "where": uri},
        {
            "id": "a",
            "collection": "c",
            "reason": "no_predecessor",
            "detail": "no earlier acquisition covers any of it",
            "where": uri,
        },
    ]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_no_pairs_are_an_empty_catalogue_in_place_of_the_old(tmp_path: Path, suffix: str) -> None:
    output = f"{tmp_path}/pairs.{suffix}"
    pair_archive(write_items(tmp_path / "items.json", item("a", 0), item("b", 40)), output, ANY, START)
    assert read_catalogue(output).num_rows == 1
    for items in ([item("a", 0)], []):
        summary = pair_archive(write_items(tmp_path / "items.json", *items), output, ANY, START)
        assert (summary.pairs, summary.acquisitions) == (0, len(items))
        with pytest.raises(CatalogueError, match="no pairs found"):
            read_catalogue(output)
    assert pacsv.read_csv(summary.left_out_table).num_rows == 0


def test_a_table_of_footprints(tmp_path: Path) -> None:
    table = tmp_path / "footprints.csv"
    table.write_text(
        "id,time,geometry,rasters\n"
        'a,2024-01-01,"POLYGON ((0 0, 1 0, 1 1, 0 1, 0 0))",a.tif\n'
        'b,2024-06-01,"POLYGON ((0 0, 1 0, 1 1, 0 1, 0 0))",b.tif\n'
    )
    summary = pair_archive(str(table), f"{tmp_path}/pairs.csv", WHOLE_ARCHIVE, START)
    (row,) = read_catalogue(summary.output).to_pylist()
    assert (row["before"], row["after"]) == ([f"{tmp_path}/a.tif"], [f"{tmp_path}/b.tif"])
    assert summary.unknown_cloud == 2


@pytest.mark.parametrize(
    ("items", "output", "options", "error", "told"),
    [
        ("items.json", "pairs.txt", {}, CatalogueError, r"ends in \.parquet or \.csv, found \.txt"),
        ("t.csv", "t.csv", {}, ConfigError, "which holds the items; name another file"),
        ("items.json", "p.csv", {"collections": ("c",)}, ConfigError, "what a STAC API is asked for"),
        ("items.json", "p.csv", {"bbox": (0, 0, 1, 1)}, ConfigError, "what a STAC API is asked for"),
        ("t.csv", "p.csv", {"assets": ("visual",)}, ConfigError, "names its rasters in columns"),
        ("t.parquet", "p.csv", {"mask_asset": "cloud"}, ConfigError, "names its rasters in columns"),
        ("https://127.0.0.1:1/api", "p.csv", {}, ConfigError, "--collections"),
        ("", "p.csv", {}, AcquisitionsError, "no STAC items in this folder"),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_is_written(
    tmp_path: Path, items: str, output: str, options: dict[str, Any], error: type[HisemError], told: str
) -> None:
    uri = items if "://" in items else str(tmp_path / items)
    with pytest.raises(error, match=told):
        pair_archive(uri, f"{tmp_path}/{output}", replace(ANY, **options), START)
    assert list(tmp_path.iterdir()) == []


def test_an_api_is_asked_from_the_earliest_predecessor_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def search_items(url: str, search: Any, assets: AssetChoice) -> Any:
        asked.append((url, search))
        raise AcquisitionsError("asked")

    monkeypatch.setattr("hisem.archive.pairing.search_items", search_items)
    request = PairRequest(max_days=31, since="yesterday", collections=("c",), bbox=(1, 2, 3, 4))
    with pytest.raises(AcquisitionsError, match="asked"):
        pair_archive("https://host/api/", f"{tmp_path}/p.csv", request, START + timedelta(days=1, hours=3))
    ((url, search),) = asked
    assert url == "https://host/api"
    assert (search.collections, search.bbox, search.earliest) == (("c",), (1, 2, 3, 4), START - timedelta(days=31))
