"""A night's log as a log shipper gets it: of the driver and of Ray's workers, JSON and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import S3Server
from tests.faults.conftest import command
from tests.faults.kill_captioning import make_inputs

pytestmark = pytest.mark.slow


def test_a_night_logs_json_that_names_failed_tiles_and_no_secret(tmp_path: Path, s3_server: S3Server) -> None:
    catalogue, bundle = make_inputs(tmp_path, scenes=2)
    asked = ("--catalog", catalogue, "--model", bundle, "--output", str(tmp_path / "out"), "--tile-size", "32")
    environment = {**os.environ, "HISEM_LOG": "json", "HISEM_WORKER_LOGS": "1", "HISEM_STORAGE": str(tmp_path)}
    done = subprocess.run(
        command("caption.py", *asked, "--captioners", "1", "--no-page"),
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    table = pq.read_table(tmp_path / "out" / "captions", columns=["tile_id", "pair_id", "status", "error"]).to_pylist()
    failed = {row["tile_id"]: row for row in table if row["status"] == "failed"}
    named = [line for line in lines if "tile_id" in line]
    assert len(named) == len({line["tile_id"] for line in named}) == min(len(failed), 21)
    assert {line["failure"] for line in named} == {"missing", "damaged"}
    (summary,) = (tmp_path / "out" / "_nights").iterdir()
    for line in named:
        row = failed[line["tile_id"]]
        assert (line["pair_id"], line["run"], line["level"]) == (row["pair_id"], summary.stem, "WARNING")
        assert row["error"] in line["message"]
    workers = [line for line in lines if "worker_id" in line]
    assert {"asctime", "levelname", "message", "name", "node_id"} < set.intersection(*map(set, workers))
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in done.stderr
