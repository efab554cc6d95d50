"""The summary of a night: numbers against rows counted by hand, reasons without paths, and files that come back."""

from __future__ import annotations

import json
import logging
import math
import random
import statistics
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from hisem import storage
from hisem.captions.night import Failure, Night, generalised, read_nights, summarise, write_night
from hisem.errors import StorageError
from hisem.schemas import CAPTION, FAILED, OK, SKIPPED

BEGAN = datetime(2024, 6, 2, 1, 30, tzinfo=UTC)


def row(number: int, status: str, **values: Any) -> dict[str, Any]:
    required = {
        "tile_id": f"p/{number}",
        "pair_id": "p",
        "before": ["b.tif"],
        "after": ["a.tif"],
        "row_off": 0,
        "col_off": 0,
        "height": 64,
        "width": 64,
        "status": status,
        "model_name": "hisem",
        "model_version": "1",
        "model_digest": "d",
        "captioned_at": BEGAN,
    }
    return required | values


def ok(number: int, caption: str, changed: bool | None, logprob: float | None) -> dict[str, Any]:
    return row(number, OK, caption=caption, changed=changed, caption_logprob=logprob)


ROWS = [
    ok(0, "a house is built", True, -2.0),
    ok(1, "a house is built", True, -4.0),
    ok(2, "a road is built", True, -9.0),
    ok(3, "the scene is the same", False, -1.0),
    ok(4, "the scene is the same", False, None),
    ok(5, "the scene is the same", False, math.nan),
    ok(6, "the scene is the same", None, -math.inf),
    # Flagged by its shift: still ok, and no failure.
    row(7, OK, caption="trees are gone", changed=True, caption_logprob=-3.0, error="shifted by 3.0 pixels"),
    row(8, SKIPPED, error="only 10 % valid"),
    row(9, FAILED, error="/x/9.tif: no such file; correct the catalogue or restore the file."),
    row(10, FAILED, error="/x/10.tif: no such file; correct the catalogue or restore the file."),
    row(11, FAILED, error="/x/b.tif: the file is empty; copy it again."),
    row(12, FAILED),
]


def night(rows: list[dict[str, Any]], **over: Any) -> Night:
    settings: dict[str, Any] = {
        "run": "20240602T013000-0",
        "status": "finished",
        "catalogue": "/c.parquet",
        "output": "/out",
        "model_name": "hisem",
        "model_version": "7",
        "model_digest": "d",
        "started": BEGAN,
        "ended": BEGAN + timedelta(seconds=4),
        "pairs": 3,
        "tiles": 20,
        "already": 7,
    }
    return summarise(pa.Table.from_pylist(rows, schema=CAPTION), **settings | over)


def test_numbers_are_those_of_the_rows() -> None:
    found = night(ROWS)
    assert (found.pairs, found.tiles, found.already) == (3, 20, 7)
    assert found.statuses == {OK: 8, SKIPPED: 1, FAILED: 4}
    assert (found.changed, found.share_changed) == (4, 0.5)
    logprobs = [-2.0, -4.0, -9.0, -1.0, -3.0]
    assert found.mean_logprob == pytest.approx(statistics.mean(logprobs))
    assert found.std_logprob == pytest.approx(statistics.stdev(logprobs))
    assert found.logprobs == 5
    assert list(found.captions.items()) == [("a house is built", 2), ("a road is built", 1), ("trees are gone", 1)]
    assert found.errors == (
        Failure("no such file; correct the catalogue or restore the file.", 2, ROWS[10]["error"]),
        Failure("no reason given", 1, "no reason given"),
        Failure("the file is empty; copy it again.", 1, ROWS[11]["error"]),
    )
    assert found.other_errors == 0
    assert (found.seconds, found.tiles_per_second) == (4.0, 13 / 4)
    assert (found.started, found.ended) == ("2024-06-02T01:30:00.000+00:00", "2024-06-02T01:30:04.000+00:00")


def test_the_order_of_rows_and_the_other_columns_do_not_matter() -> None:
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    few = pa.Table.from_pylist(shuffled, schema=CAPTION).select(
        ["caption", "error", "status", "changed", "caption_logprob"]
    )
    whole = night(ROWS)
    kept = {
        name: getattr(whole, name) for name in ("run", "status", "catalogue", "output", "pairs", "tiles", "already")
    }
    model = {name: getattr(whole, name) for name in ("model_name", "model_version", "model_digest")}
    again = summarise(few, **kept, **model, started=BEGAN, ended=BEGAN + timedelta(seconds=4))
    assert replace(again, mean_logprob=0, std_logprob=0) == replace(whole, mean_logprob=0, std_logprob=0)
    assert again.mean_logprob == pytest.approx(whole.mean_logprob)


def test_times_are_told_in_utc() -> None:
    east = timezone(timedelta(hours=2))
    assert night([], started=BEGAN.astimezone(east)).started == night([]).started


def test_a_night_without_rows() -> None:
    found = night([], ended=BEGAN)
    assert found.statuses == {OK: 0, SKIPPED: 0, FAILED: 0}
    assert (found.share_changed, found.mean_logprob, found.std_logprob, found.logprobs) == (None, None, None, 0)
    assert (found.errors, found.captions, found.tiles_per_second) == ((), {}, 0.0)
    assert found.metrics() == {
        "pairs": 3,
        "tiles": 20,
        "already": 7,
        "rows_ok": 0,
        "rows_skipped": 0,
        "rows_failed": 0,
        "failed_before": 0,
        "changed": 0,
        "seconds": 0,
        "tiles_per_second": 0,
    }
    assert not {"changed, of the tiles that are ok", "mean log-probability of a caption"} & set(found.rows())


def test_metrics_are_finite_numbers() -> None:
    metrics = night(ROWS).metrics()
    assert (metrics["share_changed"], metrics["rows_failed"], metrics["mean_logprob"]) == (0.5, 4.0, -3.8)
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    assert "std_logprob" not in night(ROWS[:1]).metrics()
    assert "mean_logprob" not in replace(night(ROWS), mean_logprob=math.nan).metrics()


def test_a_person_is_told() -> None:
    told = night(ROWS).rows()
    assert told["rows failed"] == 4
    assert told["changed, of the tiles that are ok"] == "50.0 %"
    assert told["caption: a house is built"] == 2
    assert told[f"failed, for example: {ROWS[10]['error']}"] == 2
    assert told[f"failed: {ROWS[11]['error']}"] == 1
    assert "failed: for other reasons" not in told


def test_failures_of_earlier_runs_are_stated() -> None:
    errors = pa.chunked_array([["/x/9.tif: rows 0-64 cannot be read.", "/x/9.tif: rows 64-128 cannot be read."]])
    found = night(ROWS, before=errors)
    assert (found.failed, found.failed_before, found.already) == (4 + 2, 2, 7)
    assert [(one.reason, one.count) for one in found.errors_before] == [("rows #-# cannot be read.", 2)]
    assert found.rows()["captioned before"] == 5
    assert (found.metrics()["failed_before"], found.statuses[FAILED]) == (2.0, 4)


def test_captions_that_are_rare_are_left_out() -> None:
    rows = [ok(number, f"caption {number % 12:02d}", True, -1.0) for number in range(30)]
    assert night(rows).captions == {f"caption {number:02d}": 3 if number < 6 else 2 for number in range(10)}


def test_ten_thousand_broken_files_are_one_reason() -> None:
    rows = [
        row(number, FAILED, error=f"/data/day {number}/S2_{number}.tif: rows {number}-{number + 64} cannot be read.")
        for number in range(10_000)
    ]
    (found,) = night(rows).errors
    assert (found.reason, found.count) == ("rows #-# cannot be read.", 10_000)
    assert found.example == rows[0]["error"]


def test_rare_reasons_are_counted_together() -> None:
    kinds = [word * 3 for word in "abcdefghijkl"]
    rows = [row(0, FAILED, error=f"/x.tif: {kind}") for place, kind in enumerate(kinds) for _ in range(20 - place)]
    found = night(rows)
    assert [(one.reason, one.count) for one in found.errors] == [(kinds[place], 20 - place) for place in range(10)]
    assert found.other_errors == 10 + 9
    assert found.rows()["failed: for other reasons"] == 19


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("s3://b/k:1.tif: cannot be opened (HTTP response code: 404).", "cannot be opened (HTTP response code: #)."),
        ("S2A_20240101__S2B__b56680d1: spans 10980 x 1098 pixels", "spans # x # pixels"),
        ("/a/x y.tif: found pixels of uint16 in EPSG:32633", "found pixels of uint16 in EPSG:#"),
        ("/a.tif: no overlap with /b/c.tif (bounds (1.5, -2e-3))", "no overlap with … (bounds (#, #))"),
        ("/a.tif: failed (x_17.tif, band 3: at X offset 0)", "failed (…, band #: at X offset #)"),
        ("/a.tif: ask https://host/a?b=1, or height x width and/or nothing", "ask …, or height x width and/or nothing"),
        ("/a.tif: scene S2B_MSIL2A_20240301 is cut", "scene … is cut"),
        ("the disk is full", "the disk is full"),
        ("", ""),
    ],
)
def test_a_reason_is_an_error_without_paths_and_numbers(message: str, reason: str) -> None:
    assert generalised(message) == reason


@pytest.mark.parametrize("text", ["a1-" * 50_000, "/" * 50_000, "a." * 50_000, "1," * 50_000, "x" * 50_000])
def test_no_error_takes_long(text: str) -> None:
    assert len(generalised(text)) <= 500


@pytest.mark.parametrize("kind", ["path", "file"])
def test_nights_come_back(tmp_path: Path, kind: str) -> None:
    output = str(tmp_path) if kind == "path" else f"file://{tmp_path}"
    whole, empty = night(ROWS, run="b"), night([], run="a", status="interrupted")
    for one in (whole, empty, night(ROWS, run="other", model_digest="e")):
        write_night(output, one)
    assert read_nights(output, "d", BEGAN) == [empty, whole]
    assert [one.run for one in read_nights(output, "e", BEGAN)] == ["other"]
    write_night(output, replace(empty, status="finished"))
    assert read_nights(output, "d", BEGAN)[0].status == "finished"
    assert sorted(path.name for path in (tmp_path / "_nights").iterdir()) == ["a.json", "b.json", "other.json"]


def test_nights_since_a_time_in_their_order(tmp_path: Path) -> None:
    days = [3, 0, 2, 1]
    for place, day in enumerate(days):
        write_night(str(tmp_path), night([], run=str(place), started=BEGAN + timedelta(days=day)))
    found = read_nights(str(tmp_path), "d", BEGAN + timedelta(days=1))
    assert [one.run for one in found] == ["3", "2", "0"]
    assert read_nights(f"{tmp_path}/nowhere", "d", BEGAN) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: "\udcff",
        lambda text: json.dumps({**json.loads(text), "pairs": "three"}),
        lambda text: json.dumps({**json.loads(text), "errors": [{"reason": "x"}]}),
        lambda text: json.dumps({**json.loads(text), "errors": None}),
        lambda text: json.dumps({**json.loads(text), "status": "dreamt"}),
        lambda text: json.dumps({**json.loads(text), "started": "yesterday"}),
        lambda text: json.dumps({**json.loads(text), "started": "2024-06-02T01:30:00"}),
        lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != "run"}),
    ],
)
def test_a_broken_night_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any) -> None:
    for run in ("broken", "good"):
        write_night(str(tmp_path), night(ROWS, run=run))
    path = tmp_path / "_nights" / "broken.json"
    path.write_text(change(path.read_text()), errors="surrogateescape")
    with caplog.at_level(logging.WARNING):
        assert [one.run for one in read_nights(str(tmp_path), "d", BEGAN)] == ["good"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(path) in record.getMessage()


def test_a_night_that_cannot_be_read_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_night(str(tmp_path), night(ROWS))

    def fail(uri: str) -> bytes:
        raise StorageError(f"{uri}: refused.")

    monkeypatch.setattr(storage, "read_bytes", fail)
    assert read_nights(str(tmp_path), "d", BEGAN) == []
    assert "refused" in caplog.text
