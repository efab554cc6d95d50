"""A training run whose driver is killed goes on where it stopped."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from hisem.archive.synthetic import SyntheticConfig, generate

ROOT = Path(__file__).parents[2]
SETTINGS = """
model:
  backbone: {image_size: [32, 32], options: {channels: [8, 16, 24, 32], stem_width: 8}}
  bdam: {heads: 2}
  hasd: {hidden: 32, moe: {hidden: 16}}
  decoder: {heads: 2}
training: {epochs: 6, batch_size: 16}
"""


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "pipelines" / script), *arguments]


def wait_for(pattern: str, log: Path, process: subprocess.Popen[bytes], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not re.search(pattern, log.read_text()):
        assert process.poll() is None, f"ended early:\n{log.read_text()}"
        assert time.monotonic() < until, f"{pattern} not seen:\n{log.read_text()}"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_driver_resumes_by_name(tmp_path):
    archive, shards = tmp_path / "archive", tmp_path / "shards"
    generate(SyntheticConfig(scenes=6, tile_size=32, scene_tiles=8, val_share=0.17, test_share=0.17), archive)
    catalogue, references = str(archive / "catalogue.parquet"), str(archive / "references.parquet")
    tile = ["--catalog", catalogue, "--references", references, "--output", str(shards), "--tile-size", "32"]
    subprocess.run(command("tile.py", *tile), check=True)
    environment = {**os.environ, "HISEM_STORAGE": str(tmp_path / "storage")}
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    flags = ["--data", str(shards), "--config", str(tmp_path / "settings.yaml"), "--name", "killed"]
    train = command("train.py", *flags)

    log = tmp_path / "first.log"
    with log.open("wb") as out:
        first = subprocess.Popen(train, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for("epoch 3 done", log, first, 400)
    finally:
        os.killpg(first.pid, signal.SIGKILL)  # the driver and the Ray that it started
        first.wait()

    second = subprocess.run(train, env=environment, capture_output=True, text=True, check=True, timeout=400)
    epochs = [int(number) for number in re.findall(r"epoch (\d+) done", second.stderr)]
    assert epochs[0] in (3, 4)  # a checkpoint counts at the controller's next poll
    assert epochs == list(range(epochs[0], 7))

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'storage' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("hisem").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"]
    steps = {point.step for point in client.get_metric_history(runs[0].info.run_id, "train_loss")}
    assert steps == set(range(6))
