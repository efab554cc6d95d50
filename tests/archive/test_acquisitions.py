"""Acquisitions: checked values, and one of each id whatever the order."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import shapely

from hisem.archive.acquisitions import (
    Acquisition,
    LeftOut,
    Reason,
    Unusable,
    checked_cloud_cover,
    checked_footprint,
    checked_time,
    collected,
)

MAY = datetime(2024, 5, 1, 10, tzinfo=UTC)


def acquisition(name: str, **changes: Any) -> Acquisition:
    plain = Acquisition(
        id=name, collection="c", time=MAY, footprint=shapely.box(0, 0, 1, 1), rasters=(f"/{name}.tif",), where="/items"
    )
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-05-01T10:00:00Z", MAY),
        ("2024-05-01T12:00:00+02:00", MAY),
        (" 2024-05-01T10:00:00 ", MAY),
        ("2024-05-01T10:00:00.123456789Z", MAY.replace(microsecond=123456)),
        ("2024-05-01", MAY.replace(hour=0)),
        (datetime(2024, 5, 1, 10), MAY),
        (datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2))), MAY),
    ],
)
def test_times_are_utc_where_they_name_no_zone(value: Any, expected: datetime) -> None:
    found = checked_time(value)
    assert found == expected
    assert found.tzinfo is UTC


@pytest.mark.parametrize(
    ("value", "told"), [(None, "no time"), ("May", "'May' is not ISO"), ("", "''"), (2024, "2024")]
)
def test_times_that_are_none(value: Any, told: str) -> None:
    with pytest.raises(Unusable, match=told) as raised:
        checked_time(value)
    assert raised.value.reason == Reason.NO_DATETIME


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), (0, 0.0), ("12.5", 12.5), (100, 100.0), (-1, None), (float("nan"), None)],
)
def test_cloud_cover_is_a_percentage_or_unknown(value: Any, expected: float | None) -> None:
    assert checked_cloud_cover(value) == expected


@pytest.mark.parametrize("value", [100.1, "clear", [], float("inf")])
def test_cloud_cover_that_is_none(value: Any) -> None:
    with pytest.raises(Unusable, match="is not a percentage from 0 to 100") as raised:
        checked_cloud_cover(value)
    assert raised.value.reason == Reason.BAD_CLOUD_COVER


@pytest.mark.parametrize("geometry", [None, shapely.Point(1, 2), shapely.box(0, 0, 500_000, 1)])
def test_footprints_that_are_none(geometry: shapely.Geometry | None) -> None:
    with pytest.raises(Unusable) as raised:
        checked_footprint(geometry)
    assert raised.value.reason == Reason.NO_GEOMETRY


def test_each_id_once_in_any_order() -> None:
    lost = LeftOut(id=None, collection=None, where="/x", reason=Reason.UNREADABLE, detail="cut")
    later = acquisition("a", time=MAY + timedelta(days=1), where="/later")
    other = acquisition("a", rasters=("/b.tif",), where="/other")
    found: list[Acquisition | LeftOut] = [
        acquisition("b"),
        acquisition("a"),
        acquisition("a", where="/copy"),
        other,
        later,
        lost,
    ]
    found += [acquisition("a", collection="d"), acquisition("a", collection=None)]
    for seed in range(6):
        random.Random(seed).shuffle(found)
        reading = collected(found)
        kept = [(one.collection, one.id, one.time, one.rasters) for one in reading.acquisitions]
        assert kept == [
            (None, "a", MAY, ("/a.tif",)),
            ("c", "a", MAY, ("/a.tif",)),
            ("c", "b", MAY, ("/b.tif",)),
            ("d", "a", MAY, ("/a.tif",)),
        ]
        assert reading.copies == 1
        *duplicates, last = reading.unusable
        assert [(one.id, one.where, one.reason) for one in duplicates] == [
            ("a", "/later", Reason.DUPLICATE_ID),
            ("a", "/other", Reason.DUPLICATE_ID),
        ]
        assert "another acquisition with this id is kept, of 2024-05-01T10:00:00+00:00 from /" in duplicates[0].detail
        assert last is lost
