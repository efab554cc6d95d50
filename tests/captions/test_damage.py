"""Damaged files of an output: each is an error of ours that names the file, and nothing is removed or written."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hisem.captions import staging
from hisem.captions import table as captions
from hisem.captions.lock import exclusive
from hisem.captions.night import find_night
from hisem.captions.repair import repair
from hisem.captions.settings import refuse_other_settings
from hisem.errors import HisemError, StorageError
from hisem.schemas import STAGED
from tests.captions.test_staging import job
from tests.captions.test_table import OLD, files, row, rows


def looked_at(output: str) -> None:
    """All that a run reads of an output before it captions, and when it publishes."""
    with exclusive(output, "test") as lock:
        captions.require_table(output)
        refuse_other_settings(output, {})
        there = staging.open_job(output)
        repair(lock)
        captions.known_rows(output, OLD)
        if there:
            staging.staged_rows(output, there)
            list(staging.staged_parts(output, there))
            find_night(output, there.run)
        captions.publish(rows(row("p/0", caption="newer", captioned_at=row("p/0")["captioned_at"])), output, None, lock)


@pytest.fixture
def output(tmp_path: Path) -> str:
    """An output with a table, an open job with staged rows, and settings."""
    output = str(tmp_path / "out")
    captions.publish(rows(*(row(f"p/{number}", before=[f"scene {number}.tif"] * 3) for number in range(50))), output)
    mine = job("p", "q")
    staging.begin(output, mine)
    staging.Stage(output, mine)(rows(*(row(f"q/{number}") for number in range(50))))
    Path(output, "_settings.json").write_text('{"written_by": "x"}')
    return output


def the(output: str, pattern: str) -> Path:
    (path,) = Path(output).glob(pattern)
    return path


DAMAGE = [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 20_000, b'{"a": NaN', b"1" * 5000]


@pytest.mark.parametrize("content", DAMAGE, ids=lambda content: repr(content[:9]))
@pytest.mark.parametrize("name", ["_settings.json", "_staging/job.json"])
def test_state_files_that_are_not_json_mappings_are_named(output: str, name: str, content: bytes) -> None:
    path = Path(output, name)
    path.write_bytes(content)
    before = files(output)
    with pytest.raises(StorageError, match=f"{path}: damaged"):
        looked_at(output)
    assert files(output) == before


@pytest.mark.parametrize(
    "over",
    [
        {"run": "../captions"},
        {"run": ".."},
        {"run": ""},
        {"run": "/etc"},
        {"run": "a/b"},
        {"run": "a\nb"},
        {"run": None},
        {"run": 1},
        {"redo": "some"},
        {"started": "yesterday"},
        {"started": "2026-01-01T00:00:00"},
        {"model_digest": ["x"]},
        {"reopened": "p"},
        {"reopened": [1]},
        {"surprise": 1},
    ],
)
def test_a_job_is_validated_before_it_is_believed(output: str, over: dict[str, Any]) -> None:
    path = Path(output, "_staging", "job.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | over))
    before = files(output)
    with pytest.raises(StorageError, match=f"{path}: damaged"):
        looked_at(output)
    assert files(output) == before


def test_a_job_that_lacks_a_key_is_refused(output: str) -> None:
    path = Path(output, "_staging", "job.json")
    whole = json.loads(path.read_text())
    for name in asdict(job("p")):
        if name not in ("tracking_run", "reopened"):
            path.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
            with pytest.raises(StorageError, match=f"{path}: damaged"):
                staging.open_job(output)


@pytest.mark.parametrize("pattern", ["captions/**/*.parquet", "_staging/*/*.parquet"])
def test_damaged_parquet_is_an_error_of_ours_wherever_the_damage_is(output: str, pattern: str) -> None:
    """Bytes changed, cut off and zeroed in footer and pages; what reads all the same must hold the schema."""
    path, draw = the(output, pattern), random.Random(0)
    whole = path.read_bytes()
    failed = 0
    for attempt in range(30):
        content = bytearray(whole)
        at = draw.randrange(len(content))
        if attempt % 3 == 0:
            del content[at:]
        elif attempt % 3 == 1:
            content[at : at + 50] = bytes(len(content[at : at + 50]))
        else:
            for _ in range(20):
                content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(bytes(content))
        before = files(output)
        error: HisemError | None = None
        try:
            looked_at(output)
        except HisemError as raised:
            error = raised
        if error:
            failed += 1
            assert path.name in str(error)
            assert files(output) == before
        path.write_bytes(whole)
    assert failed > 20
    looked_at(output)


def test_staged_files_of_another_schema_are_named(output: str) -> None:
    import pyarrow.parquet as pq

    path = the(output, "_staging/*/*.parquet")
    pq.write_table(STAGED.empty_table().drop_columns(["tile_id"]), path)
    with pytest.raises(HisemError, match=path.name):
        looked_at(output)


def test_a_summary_under_another_name_is_not_believed(output: str, caplog: pytest.LogCaptureFixture) -> None:
    there = staging.open_job(output)
    assert there is not None
    from hisem.captions.night import write_night
    from tests.captions.test_night import ROWS, night

    write_night(output, night(ROWS, run="other"))
    the(output, "_nights/other.json").rename(Path(output, "_nights", f"{there.run}.json"))
    assert find_night(output, there.run) is None
    assert there.run in caplog.text
