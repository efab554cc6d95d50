"""Staged rows: invisible, resumable, each key once."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from hisem import storage
from hisem.captions import staging
from hisem.captions import table as captions
from hisem.errors import SchemaError, StorageError
from hisem.schemas import CATALOGUE
from tests.captions.test_table import JUNE, NEW, OLD, row, rows


def catalogue(*pairs: str) -> pa.Table:
    return pa.Table.from_pylist(
        [{"pair_id": pair, "before": ["b.tif"], "after": ["a.tif"]} for pair in pairs], schema=CATALOGUE
    )


def job(*pairs: str, redo: staging.Redo = "nothing", digest: str = OLD) -> staging.Job:
    return staging.new_job(catalogue(*pairs), "archive.parquet", redo, "hisem", "1", digest)


def test_staged_rows_are_seen_by_no_reader_of_the_output(tmp_path: Path) -> None:
    output, mine = str(tmp_path), job("p")
    staging.begin(output, mine)
    put = staging.Stage(output, mine)
    put(rows(row("p/0"), row("p/1")))
    put(rows(row("p/2")))
    assert captions.read_captions(output).num_rows == 0
    assert ds.dataset(output, format="parquet").count_rows() == 0  # nor by one who knows nothing of us
    assert staging.staged_rows(output, mine).column("tile_id").to_pylist() == ["p/0", "p/1", "p/2"]
    staging.end(output, mine)
    assert staging.open_job(output) is None
    assert staging.staged_rows(output, mine).num_rows == 0


def test_an_interrupted_job_goes_on_where_it_was(tmp_path: Path) -> None:
    output, mine = str(tmp_path), job("p", "q")
    staging.begin(output, mine)
    staging.Stage(output, mine)(rows(row("p/0"), row("p/1", caption="first")))
    there = staging.open_job(output)
    assert there == mine
    again = job("q", "p")
    assert again.run != mine.run
    assert again.continues(mine)  # the order of a catalogue is no other catalogue
    wider = staging.new_job(catalogue("p", "q"), "archive.parquet", "nothing", "hisem", "1", OLD, ("beam", 3))
    for other in (job("p"), job("p", "q", redo="all"), job("p", "q", digest=NEW), wider):
        assert not other.continues(mine)
    staging.Stage(output, mine)(rows(row("p/2"), row("p/1", caption="second")))
    found = staging.staged_rows(output, mine)
    assert found.column("tile_id").to_pylist() == ["p/0", "p/1", "p/2"]
    assert found.column("caption").to_pylist()[1] == "first"
    staging.Stage(output, mine)(rows(row("p/1", caption="later", captioned_at=JUNE + timedelta(seconds=1))))
    assert "later" in staging.staged_rows(output, mine).column("caption").to_pylist()


def test_rows_of_a_job_that_ended_are_rubbish(tmp_path: Path) -> None:
    """Killed between forgetting the job and removing its rows."""
    output, old, new = str(tmp_path), job("p"), job("q")
    staging.begin(output, old)
    staging.Stage(output, old)(rows(row("p/0")))
    storage.delete(storage.join(output, staging.STAGING, staging.JOB))
    staging.begin(output, new)
    assert storage.list_folders(storage.join(output, staging.STAGING)) == []
    assert staging.open_job(output) == new


def test_the_mlflow_run_of_a_job_is_known_to_who_goes_on(tmp_path: Path) -> None:
    mine = job("p")
    staging.begin(str(tmp_path), mine)
    staging.Stage(str(tmp_path), mine)(rows(row("p/0")))
    staging.tracked(str(tmp_path), mine, "abc")
    there = staging.open_job(str(tmp_path))
    assert there is not None
    assert there.tracking_run == "abc"
    assert staging.staged_rows(str(tmp_path), mine).num_rows == 1


def test_what_cannot_be_understood_is_named(tmp_path: Path) -> None:
    output = str(tmp_path)
    storage.write_bytes(storage.join(output, staging.STAGING, staging.JOB), b'{"run": 1}')
    with pytest.raises(StorageError, match=r"job\.json: damaged.*or remove"):
        staging.open_job(output)
    with pytest.raises(SchemaError, match=r"captions: missing .*model_digest"):
        staging.Stage(output, job("p"))(rows(row("p/0")).drop_columns(["model_digest"]))


def test_a_job_of_an_earlier_version_is_continued(tmp_path: Path) -> None:
    output, mine = str(tmp_path), job("p", "q")
    staging.Stage(output, mine)(rows(row("p/0")))
    then = {name: value for name, value in asdict(mine).items() if name != "reopened"}
    storage.write_bytes(storage.join(output, staging.STAGING, staging.JOB), json.dumps(then).encode())
    there = staging.open_job(output)
    assert there == mine
    published = rows(row("p/0"), row("p/9"))
    captions.publish(published, output)
    for path in Path(output, "captions").rglob("*.parquet"):
        path.rename(path.with_name(f"part-{16 * 'a'}.parquet"))
    captions.publish(rows(row("p/0"), row("p/1")), output, there.run)
    assert sorted(captions.read_captions(output).column("tile_id").to_pylist()) == ["p/0", "p/1", "p/9"]
