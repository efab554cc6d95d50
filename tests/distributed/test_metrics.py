"""Metrics as Prometheus fetches them: a run's numbers at the endpoint of its node."""

from __future__ import annotations

import re
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import ray

from hisem import storage
from hisem.archive.catalogue import read_catalogue
from hisem.captions.failures import kind_of
from hisem.captions.options import Captioning
from hisem.captions.table import read_captions
from hisem.distributed.captioner import CaptionOptions
from hisem.distributed.nightly import caption_archive
from tests.distributed.conftest import TILE

Labels = tuple[tuple[str, str], ...]
RATE = "ray_hisem_tiles_per_second"
OURS = ("run", "status", "failure", "state")


def scrape() -> tuple[str, dict[str, Counter[Labels]]]:
    """What the node of this test serves, and our metrics of it by our labels: summed over processes."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, Counter[Labels]] = {}
    for name, labels, value in re.findall(r"(?m)^(ray_hisem_\w+)\{(.*)\} (\S+)$", text):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        ours = tuple((label, pairs[label]) for label in OURS if pairs.get(label))
        found.setdefault(name, Counter())[ours] += float(value)
    return text, found


def until(holds: Callable[[dict[str, Counter[Labels]]], bool], seconds: float = 30) -> dict[str, Counter[Labels]]:
    """Our metrics as soon as they hold: Ray sends them on every few seconds."""
    end = time.monotonic() + seconds
    while not holds(found := scrape()[1]) and time.monotonic() < end:
        time.sleep(0.2)
    return found


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

    def mine(found: dict[str, Counter[Labels]], name: str) -> dict[Labels, float]:
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
    found = until(lambda found: found.get("ray_hisem_training_pairs_total", Counter())[run] == pairs)
    assert found["ray_hisem_training_pairs_total"][run] == pairs
    assert found["ray_hisem_training_steps_total"][run] == steps
    waited = sum(row["train_waiting"] for row in summary.history)  # of the first worker
    assert found["ray_hisem_training_data_wait_seconds_total"][run] >= 0.9 * waited > 0
    types = dict(re.findall(r"(?m)^# TYPE (ray_hisem_\w+) (\w+)$", scrape()[0]))
    assert {name: kind == "counter" for name, kind in types.items()} == {
        name: name.endswith("_total") for name in types
    }


def test_a_sweep_shows_its_trials_by_state(swept, ray_cluster):
    expected = Counter({"over": 2.0, "failed": 1.0, "waiting": 0.0, "running": 0.0})
    wanted = {(("run", swept.options.name), ("state", state)): count for state, count in expected.items()}
    assert until(lambda found: found.get("ray_hisem_trials") == wanted)["ray_hisem_trials"] == wanted
