"""A night's log as it is collected: JSON and nothing else from the driver, and JSON from Ray's workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hisem.captions.failures import NAMED
from tests.conftest import S3Server
from tests.faults.conftest import ROOT
from tests.faults.kill_captioning import make_inputs

pytestmark = pytest.mark.slow

NIGHT = """
import logging
from hisem import cli
from hisem.distributed import session
from pipelines.caption import Options, main
import ray

@ray.remote
def tell():
    logging.getLogger("hisem.worker").warning("%s is seen", "p/0", extra={"pair_id": "p", "tile_id": "p/0"})

def night(options):
    with session.cluster():
        ray.get(tell.remote())
        return main(options)

cli.run(night, lambda: cli.parse(Options, "test"))
"""


def test_a_night_logs_json_that_names_failed_tiles_and_no_secret(tmp_path: Path, s3_server: S3Server) -> None:
    catalogue, bundle = make_inputs(tmp_path, scenes=2)
    asked = ("--catalog", catalogue, "--model", bundle, "--output", str(tmp_path / "out"), "--tile-size", "32")
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # Ray's sockets lie there, whose paths must be short
        variables = {"HISEM_LOG": "json", "HISEM_STORAGE": str(tmp_path), "PYTHONPATH": str(ROOT), "RAY_TMPDIR": short}
        done = subprocess.run(
            [sys.executable, "-c", NIGHT, *asked, "--captioners", "1", "--no-page"],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        written = "".join(path.read_text() for path in Path(short).glob("ray/session_2*/logs/worker-*.err"))
    assert done.returncode == 3, done.stderr
    (seen,) = [json.loads(line) for line in written.splitlines() if "p/0 is seen" in line]
    assert {"levelname": "WARNING", "name": "hisem.worker", "pair_id": "p", "tile_id": "p/0"}.items() <= seen.items()
    assert {"asctime", "node_id", "worker_id", "job_id"} < set(seen)
    named = [line for line in map(json.loads, done.stderr.splitlines()) if "tile_id" in line]
    columns = ["tile_id", "pair_id", "status", "error"]
    rows = {row["tile_id"]: row for row in pq.read_table(tmp_path / "out" / "captions", columns=columns).to_pylist()}
    failed = {tile for tile, row in rows.items() if row["status"] == "failed"}
    assert len({line["tile_id"] for line in named}) == len(named) == min(len(failed), NAMED + 1)
    assert {line["failure"] for line in named} == {"missing", "damaged"}
    (summary,) = (tmp_path / "out" / "_nights").iterdir()
    for line in named:
        row = rows[line["tile_id"]]
        assert (line["pair_id"], line["run"], line["level"]) == (row["pair_id"], summary.stem, "WARNING")
        assert line["message"] == f"{row['tile_id']} has failed: {row['error']}"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in done.stderr + written
