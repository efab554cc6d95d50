"""Metrics as Prometheus fetches them: a run's numbers at the endpoint of its node."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pyarrow as pa

from hisem import storage
from hisem.archive.catalogue import read_catalogue
from hisem.captions.failures import kind_of
from hisem.captions.options import Captioning
from hisem.captions.table import read_captions
from hisem.distributed.captioner import CaptionOptions
from hisem.distributed.nightly import caption_archive
from tests.distributed.conftest import TILE
from tests.distributed.prometheus import Labels, Metrics, scrape, until

RATE = "ray_hisem_tiles_per_second"


def test_a_night_counts_its_tiles_by_status_and_kind_of_failure(archive, bundle, ray_cluster, tmp_path):
    rows = read_catalogue(storage.join(archive, "with_gone.parquet")).slice(4).to_pylist()
    damaged = tmp_path / "damaged.tif"
    damaged.write_bytes(Path(rows[0]["after"][0]).read_bytes()[:4000])
    rows[0]["after"] = [str(damaged)]
    catalogue = pa.Table.from_pylist(rows, schema=read_catalogue(storage.join(archive, "catalogue.parquet")).schema)
    asked = Captioning(batch_size=8, captioners=1, page=False)
    night = caption_archive(catalogue, CaptionOptions(str(tmp_path), bundle, "t", "1", TILE, captioning=asked)).night
    expected: Counter[Labels] = Counter()
    for row in read_captions(str(tmp_path)).to_pylist():
        failure = (("failure", kind_of(row["error"])),) if row["status"] == "failed" else ()
        expected[("run", night.run), ("status", row["status"]), *failure] += 1
    assert {dict(labels).get("failure") for labels in expected} == {None, "missing", "damaged"}

    def mine(found: Metrics, name: str) -> dict[Labels, float]:
        return {labels: value for labels, value in found.get(name, {}).items() if ("run", night.run) in labels}

    found = until(lambda found: mine(found, "ray_hisem_tiles_total") == expected)
    assert mine(found, "ray_hisem_tiles_total") == expected
    (rate,) = mine(until(lambda found: bool(mine(found, RATE))), RATE).values()
    assert rate > 0
    text, _ = scrape()
    assert str(tmp_path) not in text  # labels are no messages
    assert "secret-of-the-tests" not in text


def test_training_counts_steps_pairs_and_waiting(trained, ray_cluster):
    options, summary = trained
    run = (("run", options.name),)
    steps, pairs = (sum(row[f"train_{name}"] for row in summary.history) for name in ("steps", "pairs"))
    found = until(lambda found: found.get("ray_hisem_training_pairs_total", {}).get(run) == pairs)
    assert found["ray_hisem_training_pairs_total"][run] == pairs
    assert found["ray_hisem_training_steps_total"][run] == steps
    waited = sum(row["train_waiting"] for row in summary.history)  # of the first worker
    assert found["ray_hisem_training_data_wait_seconds_total"][run] >= 0.9 * waited > 0
    types = dict(re.findall(r"(?m)^# TYPE (ray_hisem_\w+) (\w+)$", scrape()[0]))
    assert {name: kind == "counter" for name, kind in types.items()} == {
        name: name.endswith("_total") for name in types
    }
