"""The captioning job: what it leaves out, redoes, goes on with, and tells."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from hisem import storage, tracking
from hisem.archive.catalogue import read_catalogue
from hisem.archive.index import index_pair
from hisem.captions import staging
from hisem.captions import table as captions
from hisem.captions.lock import exclusive
from hisem.captions.night import Night, moment
from hisem.captions.options import Captioning
from hisem.captions.table import known_rows, read_captions
from hisem.distributed import conclusion, nightly, work
from hisem.distributed.captioner import CaptionOptions, ReadingCaptioner
from hisem.distributed.index import cut
from hisem.distributed.nightly import caption_archive, publish_interrupted
from hisem.distributed.shipping import ship
from hisem.errors import BusyError, CaptioningError, CatalogueError, StorageError, TrackingError
from hisem.model.bundle import digest
from hisem.model.hisem import HiSem
from hisem.schemas import FAILED, OK, SKIPPED

TILE = 32


@pytest.fixture
def catalogue(archive):
    return read_catalogue(storage.join(archive, "with_gone.parquet"))


def options(bundle: Path, output: Path, tracked: str | None = None, **captioning: Any) -> CaptionOptions:
    asked = Captioning(batch_size=8, captioners=1, **captioning)
    return CaptionOptions(str(output), bundle, "tiny", "1", TILE, captioning=asked, tracking=tracked)


def made(night: Night) -> int:
    return sum(night.statuses.values())


def keys(output: Path) -> Counter[tuple[str, str]]:
    return Counter((row["tile_id"], row["model_digest"]) for row in read_captions(str(output)).to_pylist())


def times(output: Path) -> dict[str, Any]:
    return {row["tile_id"]: row["captioned_at"] for row in read_captions(str(output)).to_pylist()}


def dated(catalogue: pa.Table, pair: int, column: str, date: datetime | None) -> pa.Table:
    """The catalogue with another date of one pair."""
    rows = catalogue.to_pylist()
    rows[pair][column] = date
    return pa.Table.from_pylist(rows, schema=catalogue.schema)


class Killed(BaseException):
    """The end of the process, wherever it comes."""


def captioned_here(index: pa.Table, options: CaptionOptions, digest: str) -> Iterator[pa.Table]:
    """As `captioned`, without an actor, whose start takes most of such a small run; test_captioner.py has those."""
    captioner = ReadingCaptioner(ship(options.model), options, digest)
    for block in cut(index) if len(index) else ():
        yield from captioner(block)


@pytest.fixture(autouse=True)
def no_actors(monkeypatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.setattr(nightly, "captioned", captioned_here)
    yield
    torch.set_num_threads(threads)


def dying_after(parts: int, monkeypatch) -> None:
    """End the process after so many batches have come from the captioner."""

    def some(*args):
        for number, rows in enumerate(captioned_here(*args)):
            if number == parts:
                raise Killed
            yield rows

    monkeypatch.setattr(nightly, "captioned", some)
    monkeypatch.setattr(nightly, "STAGE_ROWS", 1)


def test_a_second_run_adds_nothing(catalogue, bundle, ray_cluster, tmp_path):
    caption_archive(catalogue, options(bundle, tmp_path))
    files = {path: storage.read_bytes(path) for path in storage.list_files(tmp_path / "captions")}
    again = caption_archive(catalogue, options(bundle, tmp_path)).night
    assert (again.tiles, again.already, again.statuses[FAILED], made(again)) == (97, 96, 1, 1)  # one pair is gone
    assert {path: storage.read_bytes(path) for path in storage.list_files(tmp_path / "captions")} == files


def test_a_pair_that_has_the_name_of_another_is_refused_until_told_otherwise(catalogue, bundle, ray_cluster, tmp_path):
    caption_archive(catalogue, options(bundle, tmp_path))
    rows, date = read_captions(str(tmp_path)), datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
    other = dated(dated(catalogue, 1, "after_time", date), 2, "before_time", None)
    then, pair = f"{catalogue['before_time'][1].as_py():%Y-%m-%d %H:%M:%S}", catalogue["pair_id"][1].as_py()
    told = rf"pair {pair} is of {then} and 2031-05-06 07:08:09, but .* rows .* of {then} and .*\(1 more pairs differ\)"
    for retry in (False, True):
        with pytest.raises(CatalogueError, match=told):
            caption_archive(other, options(bundle, tmp_path, retry_failed=retry))
    assert staging.open_job(str(tmp_path)) is None
    assert read_captions(str(tmp_path)).equals(rows)
    assert made(caption_archive(other, options(bundle, tmp_path, recaption=True)).night) == 97
    assert made(caption_archive(other, options(bundle, tmp_path)).night) == 1  # the pair that is gone


def test_the_date_of_a_pair_that_never_opened_may_be_mended(catalogue, bundle, ray_cluster, tmp_path):
    caption_archive(catalogue, options(bundle, tmp_path))
    gone = catalogue["pair_id"].to_pylist().index("gone")
    mended = dated(catalogue, gone, "after_time", datetime(2031, 5, 6, tzinfo=UTC))
    assert caption_archive(mended, options(bundle, tmp_path)).night.statuses == {OK: 0, SKIPPED: 0, FAILED: 1}


def test_only_new_pairs_are_captioned(catalogue, bundle, ray_cluster, tmp_path):
    caption_archive(catalogue.slice(0, 2), options(bundle, tmp_path))
    more = caption_archive(catalogue.slice(0, 4), options(bundle, tmp_path)).night
    assert (more.already, made(more)) == (32, 32)
    assert len(known_rows(str(tmp_path), digest(bundle))) == 64


def test_a_pair_that_opens_again_takes_its_failed_row_back(archive, bundle, ray_cluster, tmp_path):
    scene = read_catalogue(storage.join(archive, "catalogue.parquet")).slice(0, 1)
    row = scene.to_pylist()[0]
    moved = tmp_path / "after.tif"
    late = pa.Table.from_pylist([{**row, "after": [str(moved)]}], schema=scene.schema)
    output = options(bundle, tmp_path / "out")
    assert caption_archive(late, output).night.statuses["failed"] == 1
    shutil.copy(row["after"][0], moved)
    assert caption_archive(late, output).night.statuses["ok"] == 16
    rows = read_captions(str(tmp_path / "out"))
    assert sorted(rows.column("tile_id").to_pylist()) == sorted(index_pair(row, TILE).column("tile_id").to_pylist())
    moved.rename(tmp_path / "away.tif")  # an outage of a night, after which nothing is left of it
    caption_archive(late, output)
    (tmp_path / "away.tif").rename(moved)
    caption_archive(late, output)
    assert read_captions(str(tmp_path / "out")).num_rows == 16


def test_an_interrupted_run_goes_on_and_is_published_as_one(catalogue, bundle, ray_cluster, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        dying_after(4, patch)
        with pytest.raises(Killed):
            caption_archive(catalogue, options(bundle, tmp_path))
    assert storage.list_files(tmp_path / "captions") == []
    job = staging.open_job(str(tmp_path))
    assert job is not None
    staged = len(staging.staged_rows(str(tmp_path), job))
    assert 0 < staged < 97
    done: list[int] = []

    def counted(todo, *args):
        done.append(len(todo))
        return captioned_here(todo, *args)

    monkeypatch.setattr(nightly, "captioned", counted)
    night = caption_archive(catalogue, options(bundle, tmp_path)).night
    assert done == [97 - staged]
    assert (night.run, made(night), night.already) == (job.run, 97, 0)
    assert set(keys(tmp_path).values()) == {1}
    assert sum(keys(tmp_path).values()) == 97
    days = len({str(time)[:10] for time in catalogue.column("after_time").to_pylist()})
    assert len(storage.list_files(tmp_path / "captions")) == days
    assert storage.list_folders(tmp_path / "_staging") == []


def test_what_another_run_had_finished_is_published_first(catalogue, bundle, ray_cluster, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        dying_after(2, patch)
        with pytest.raises(Killed):
            caption_archive(catalogue.slice(0, 2), options(bundle, tmp_path))
    job = staging.open_job(str(tmp_path))
    assert job is not None
    done = set(staging.staged_rows(str(tmp_path), job).column("tile_id").to_pylist())
    staged = len(done)
    night = caption_archive(catalogue.slice(0, 3), options(bundle, tmp_path)).night
    assert (night.already, made(night)) == (staged, 48 - staged)
    assert sum(keys(tmp_path).values()) == 48
    left = json.loads(storage.read_bytes(tmp_path / "_nights" / f"{job.run}.json"))
    assert (left["status"], left["statuses"][OK] + left["statuses"]["skipped"]) == ("interrupted", staged)
    last = max(row["captioned_at"] for row in read_captions(str(tmp_path)).to_pylist() if row["tile_id"] in done)
    assert moment(left["ended"]) == last.replace(microsecond=last.microsecond // 1000 * 1000)
    assert left["seconds"] == pytest.approx((last - moment(job.started)).total_seconds())
    assert left["tiles_per_second"] == pytest.approx(staged / left["seconds"])


def test_what_no_run_goes_on_with_is_published_and_tracked(catalogue, bundle, ray_cluster, tmp_path, monkeypatch):
    uri, out = tracking.sqlite_uri(str(tmp_path / "ml")), tmp_path / "out"
    assert publish_interrupted(str(out), True, uri) is None
    with monkeypatch.context() as patch:
        dying_after(2, patch)
        with pytest.raises(Killed):
            caption_archive(catalogue.slice(0, 2), options(bundle, out, uri))
    job = staging.open_job(str(out))
    assert job is not None
    staged = staging.staged_rows(str(out), job)
    client = mlflow.MlflowClient(tracking_uri=uri)
    client.update_run(job.tracking_run, status="RUNNING")  # as a driver leaves it that had no time to say anything
    with exclusive(str(out), "another"), pytest.raises(BusyError, match="held by another"):
        publish_interrupted(str(out), True, uri)
    outcome = publish_interrupted(str(out), True, uri)
    assert outcome is not None
    assert (outcome.night.status, made(outcome.night)) == ("interrupted", len(staged))
    assert set(keys(out)) == {(tile, digest(bundle)) for tile in staged.column("tile_id").to_pylist()}
    assert storage.list_folders(out / "_staging") == []
    run = client.get_run(job.tracking_run)
    assert run.info.status == "KILLED"
    assert run.data.metrics["rows_ok"] == outcome.night.statuses[OK]
    assert run.data.metrics["seconds"] == outcome.night.seconds > 0
    assert {file.path for file in client.list_artifacts(run.info.run_id, "night")} >= {"night/night.json"}
    assert publish_interrupted(str(out), True, uri) is None


def test_a_night_killed_when_all_was_told_stays_finished(catalogue, bundle, ray_cluster, tmp_path, monkeypatch):
    def killed(*_: Any) -> None:
        raise Killed

    uri, out = tracking.sqlite_uri(str(tmp_path / "ml")), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(staging, "end", killed)
        with pytest.raises(Killed):
            caption_archive(catalogue.slice(0, 2), options(bundle, out, uri))
    job = staging.open_job(str(out))
    assert job is not None
    told = storage.read_bytes(out / "_nights" / f"{job.run}.json")
    client = mlflow.MlflowClient(tracking_uri=uri)
    client.update_run(job.tracking_run, status="RUNNING")
    outcome = publish_interrupted(str(out), True, uri)
    assert outcome is not None
    assert outcome.night.status == "finished"
    assert storage.read_bytes(out / "_nights" / f"{job.run}.json") == told
    assert client.get_run(job.tracking_run).info.status == "FINISHED"
    assert set(keys(out).values()) == {1}


def test_a_pair_that_opens_after_an_interruption_has_no_failed_row(archive, bundle, ray_cluster, tmp_path, monkeypatch):
    scenes = read_catalogue(storage.join(archive, "catalogue.parquet"))
    rows = scenes.slice(0, 2).to_pylist()
    late = tmp_path / "late.tif"
    there, rows[0]["after"] = rows[0]["after"], [str(late)]
    some, out = pa.Table.from_pylist(rows, schema=scenes.schema), tmp_path / "out"
    with monkeypatch.context() as patch:
        dying_after(1, patch)
        with pytest.raises(Killed):
            caption_archive(some, options(bundle, out))
    shutil.copy(there[0], late)
    night = caption_archive(some, options(bundle, out)).night
    assert (made(night), night.statuses[FAILED], night.errors) == (32, 0, ())
    assert set(keys(out)) == {(t, digest(bundle)) for r in rows for t in index_pair(r, TILE)["tile_id"].to_pylist()}


def test_a_clock_that_was_ahead_keeps_no_retry_back(archive, bundle, ray_cluster, tmp_path, monkeypatch):
    some = read_catalogue(storage.join(archive, "catalogue.parquet")).slice(0, 1)

    class Ahead(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=1)

    with monkeypatch.context() as patch:
        patch.setattr(work, "datetime", Ahead)
        caption_archive(some, options(bundle, tmp_path))
    before = times(tmp_path)
    caption_archive(some, options(bundle, tmp_path, recaption=True))
    assert all(after > before[tile] for tile, after in times(tmp_path).items())
    assert set(keys(tmp_path).values()) == {1}


def test_recaption_replaces_the_rows_of_the_catalogue_alone(catalogue, bundle, ray_cluster, tmp_path, monkeypatch):
    caption_archive(catalogue, options(bundle, tmp_path))
    before, files = times(tmp_path), storage.list_files(tmp_path / "captions")
    some = catalogue.slice(1, 2)
    pairs = set(some.column("pair_id").to_pylist())
    with monkeypatch.context() as patch:
        dying_after(2, patch)
        with pytest.raises(Killed):
            caption_archive(some, options(bundle, tmp_path, recaption=True))
    assert times(tmp_path) == before
    night = caption_archive(some, options(bundle, tmp_path, recaption=True)).night
    assert made(night) == 32
    after = times(tmp_path)
    assert {tile for tile in after if after[tile] != before[tile]} == {t for t in before if t.split("/")[0] in pairs}
    assert sum(keys(tmp_path).values()) == 97
    assert storage.list_files(tmp_path / "captions") == files


def test_retry_failed_redoes_failed_tiles_alone(archive, bundle, ray_cluster, tmp_path):
    scenes = read_catalogue(storage.join(archive, "catalogue.parquet"))
    rows = scenes.slice(0, 2).to_pylist()
    broken, gone = tmp_path / "broken.tif", tmp_path / "gone.tif"
    whole = Path(rows[0]["after"][0]).read_bytes()
    broken.write_bytes(whole[: len(whole) * 2 // 3])
    rows[0]["after"], rows[1]["after"] = [str(broken)], [str(gone)]
    some = pa.Table.from_pylist(rows, schema=scenes.schema)
    out = tmp_path / "out"
    first = caption_archive(some, options(bundle, out)).night
    failed = {r["tile_id"] for r in read_captions(str(out)).to_pylist() if r["status"] == FAILED}
    assert len(failed) > 2
    assert f"{rows[1]['pair_id']}/pair" in failed
    assert first.errors  # a reason a kind, not a line a tile
    assert len(first.errors) < len(failed)
    before = times(out)
    again = caption_archive(some, options(bundle, out)).night
    assert (made(again), again.statuses[FAILED]) == (1, 1)  # the pair; failed rows of tiles are rows, and known
    assert (again.failed, again.failed_before) == (len(failed), len(failed) - 1)
    assert again.tiles == again.already + 1
    assert {one.reason for one in (*again.errors, *again.errors_before)} == {one.reason for one in first.errors}
    assert times(out) == before
    broken.write_bytes(whole)
    shutil.copy(scenes.slice(1, 1).to_pylist()[0]["after"][0], gone)
    third = pa.concat_tables([some, scenes.slice(2, 1)])
    again = caption_archive(third, options(bundle, out, retry_failed=True)).night
    assert made(again) == len(failed) - 1 + 16  # and not the third pair, which is new
    after = times(out)
    assert {tile for tile in before if after.get(tile) == before[tile]} == set(before) - failed
    assert set(after) == {t for r in rows for t in index_pair(r, TILE).column("tile_id").to_pylist()}
    assert FAILED not in read_captions(str(out)).column("status").to_pylist()
    assert set(keys(out).values()) == {1}


def test_the_run_is_told_in_json_on_a_page_and_in_mlflow(catalogue, bundle, ray_cluster, tmp_path):
    uri = tracking.sqlite_uri(str(tmp_path / "ml"))
    outcome = caption_archive(catalogue, options(bundle, tmp_path / "out", uri))
    rows = read_captions(str(tmp_path / "out"))
    night = outcome.night
    changed = pc.sum(rows.column("changed")).as_py()
    assert (night.changed, night.statuses) == (
        changed,
        {name: Counter(rows.column("status").to_pylist())[name] for name in ("ok", "skipped", "failed")},
    )
    assert night.share_changed == pytest.approx(changed / night.statuses[OK])
    assert night.mean_logprob == pytest.approx(pc.mean(rows.column("caption_logprob")).as_py())
    stored = json.loads(storage.read_bytes(tmp_path / "out" / "_nights" / f"{night.run}.json"))
    assert stored["statuses"] == night.statuses
    assert outcome.page is not None
    page = storage.read_bytes(outcome.page).decode()
    assert all(text in page for text in night.captions)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("hisem")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["rows_failed"] == 1
    assert run.data.params["model_digest"] == digest(bundle)
    assert {file.path for file in client.list_artifacts(run.info.run_id, "night")} == {
        "night/night.json",
        "night/page.html",
    }


def test_a_tracking_store_that_fails_keeps_no_captions_back(
    catalogue, bundle, ray_cluster, tmp_path, caplog, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    night = caption_archive(catalogue.slice(0, 1), options(bundle, tmp_path, "http://127.0.0.1:9")).night
    assert night.statuses[OK] + night.statuses["skipped"] == 16
    assert "not tracked" in caplog.text
    assert sum(keys(tmp_path).values()) == 16


def tracked_run(uri: str) -> Any:
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("hisem").experiment_id])
    return run


def test_parameters_that_the_store_refuses_leave_no_run_open(catalogue, bundle, ray_cluster, tmp_path, monkeypatch):
    uri = tracking.sqlite_uri(str(tmp_path / "ml"))

    def refuse(*_: Any) -> None:
        raise TrackingError("no")

    monkeypatch.setattr(tracking.Run, "params", refuse)
    caption_archive(catalogue.slice(0, 1), options(bundle, tmp_path / "out", uri))
    run = tracked_run(uri)
    assert (run.info.status, run.data.metrics["pairs"]) == ("FINISHED", 1)


def test_a_publication_that_fails_leaves_no_run_open_and_is_made_up_for(
    catalogue, bundle, ray_cluster, tmp_path, monkeypatch
):
    uri, out = tracking.sqlite_uri(str(tmp_path / "ml")), tmp_path / "out"

    def refuse(*_: Any) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(captions, "publish", refuse)
        with pytest.raises(StorageError, match="disk is full"):
            caption_archive(catalogue.slice(0, 1), options(bundle, out, uri))
    assert tracked_run(uri).info.status == "FAILED"
    caption_archive(catalogue.slice(0, 1), options(bundle, out, uri))
    assert tracked_run(uri).info.status == "FINISHED"
    assert sum(keys(out).values()) == 16


def test_what_is_done_is_kept_when_captioners_fail(catalogue, bundle, ray_cluster, tmp_path, monkeypatch):
    def failing(*args: Any) -> Iterator[pa.Table]:
        yield next(captioned_here(*args))
        raise CaptioningError("captioners have died")

    monkeypatch.setattr(nightly, "captioned", failing)
    with pytest.raises(CaptioningError):
        caption_archive(catalogue.slice(0, 1), options(bundle, tmp_path))
    job = staging.open_job(str(tmp_path))
    assert job is not None
    assert len(staging.staged_rows(str(tmp_path), job)) == 8


def test_pictures_are_read_of_the_tiles_alone_whose_pictures_are_shown(
    catalogue, bundle, ray_cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(conclusion, "PICTURED", 3)
    outcome = caption_archive(catalogue.slice(0, 2), options(bundle, tmp_path))
    assert outcome.night.changed > 3
    assert outcome.page is not None
    page = storage.read_bytes(outcome.page).decode()
    assert page.count("/9j/") == 6  # how a JPEG begins in base64
    assert f"Left out are the pictures of {outcome.night.changed - 3} tile(s)" in page


def test_a_table_is_looked_at_while_no_other_run_changes_it(catalogue, bundle, tmp_path):
    torn = storage.join(str(tmp_path), "captions", "acquired=2020-01-01", "part.parquet")
    storage.write_bytes(torn, b"PAR1 half")
    with exclusive(str(tmp_path), "another"), pytest.raises(BusyError, match="held by another"):
        caption_archive(catalogue, options(bundle, tmp_path))


def test_a_second_job_on_an_output_is_refused(catalogue, bundle, ray_cluster, tmp_path):
    with exclusive(str(tmp_path), "captioning of archive.parquet"):
        with pytest.raises(BusyError, match=r"held by captioning of archive\.parquet"):
            caption_archive(catalogue, options(bundle, tmp_path))
        assert storage.list_files(tmp_path) == []
    assert made(caption_archive(catalogue.slice(0, 1), options(bundle, tmp_path)).night) == 16


def test_sure_tiles_skip_the_decoder_and_no_other_caption_changes(catalogue, bundle, ray_cluster, tmp_path):
    some = catalogue.slice(0, 2)
    caption_archive(some, options(bundle, tmp_path / "whole"))
    probabilities = read_captions(str(tmp_path / "whole")).column("change_probability").drop_null().to_pylist()
    sure, threshold = np.quantile(probabilities, [0.3, 0.6])
    model = HiSem.from_pretrained(bundle)
    model.set_routing(threshold=float(threshold))
    model.save_pretrained(tmp_path / "bundle")
    caption_archive(some, options(tmp_path / "bundle", tmp_path / "slow"))
    caption_archive(some, options(tmp_path / "bundle", tmp_path / "fast", sure_unchanged=float(sure)))
    slow = {row["tile_id"]: row for row in read_captions(str(tmp_path / "slow")).to_pylist()}
    skipped = 0
    for row in read_captions(str(tmp_path / "fast")).to_pylist():
        if row["status"] == OK and row["caption_logprob"] is None:
            skipped += 1
            assert (row["caption"], row["changed"]) == ("the scene is the same as before", False)
            assert row["change_probability"] < sure
        else:
            assert (row["caption"], row["changed"]) == tuple(slow[row["tile_id"]][n] for n in ("caption", "changed"))
    assert skipped == sum(probability < sure for probability in probabilities)
    assert skipped > 5


def test_a_wider_beam_gives_second_captions(catalogue, bundle, ray_cluster, tmp_path):
    caption_archive(catalogue.slice(0, 1), options(bundle, tmp_path, beam=3))
    rows = [row for row in read_captions(str(tmp_path)).to_pylist() if row["status"] == OK]
    assert any(row["second_caption"] for row in rows)
    assert all(row["second_caption"] != row["caption"] for row in rows)


def test_a_row_that_became_unusable_fails_and_spoils_no_other(archive, bundle, ray_cluster, tmp_path):
    scenes = read_catalogue(storage.join(archive, "catalogue.parquet"))
    out = tmp_path / "out"
    caption_archive(scenes.slice(0, 1), options(bundle, out))
    rows = scenes.slice(0, 2).to_pylist()
    for row in rows:
        row |= {name: row[name] and row[name].isoformat() for name in ("before_time", "after_time")}
    rows[0]["before_time"] = "spring"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    night = caption_archive(read_catalogue(str(tmp_path / "c.parquet")), options(bundle, out)).night
    assert night.statuses[FAILED] == 1
    failed = [row for row in read_captions(str(out)).to_pylist() if row["status"] == FAILED]
    assert [row["tile_id"] for row in failed] == [f"{rows[0]['pair_id']}/pair"]
    assert "before_time 'spring' is not an ISO 8601 time" in failed[0]["error"]


@pytest.mark.parametrize(
    ("asked", "flags"),
    [
        ({"beam": 3}, "--beam 3"),
        ({"sure_unchanged": 0.01, "precision": "bf16"}, "--precision bf16 --sure-unchanged 0.01"),
    ],
)
def test_options_that_change_no_row_are_named(catalogue, bundle, ray_cluster, tmp_path, caplog, asked, flags):
    some = catalogue.slice(0, 1)
    caption_archive(some, options(bundle, tmp_path, **asked))
    assert "--recaption" not in caplog.text  # all tiles were captioned with them
    night = caption_archive(some, options(bundle, tmp_path, **asked)).night
    assert (night.already, made(night)) == (16, 0)
    assert f"16 tile(s) have a row by this model and are left out: {flags} has no effect" in caplog.text
    caplog.clear()
    caption_archive(some, options(bundle, tmp_path))
    caption_archive(some, options(bundle, tmp_path, recaption=True, **asked))
    assert "no effect" not in caplog.text
