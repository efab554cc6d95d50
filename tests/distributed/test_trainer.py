"""Training with Ray Train on two workers fed by Ray Data."""

import json
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

import hisem
from hisem import storage, tracking
from hisem.config import flatten, to_dict
from hisem.distributed.dataset import decode, pixels, read_splits
from hisem.distributed.publishing import Registration, promote
from hisem.distributed.run_file import RunFile
from hisem.distributed.trainer import train
from hisem.errors import ConfigError, DatasetError, ResourceError, StorageError, TrainingError
from hisem.model.hisem import HiSem
from hisem.report.progress import epoch_line
from hisem.training.checkpoints import Checkpoints
from hisem.training.execution import Execution
from tests.distributed.conftest import tiny


def test_the_run_is_tracked(trained):
    options, summary = trained
    client = mlflow.MlflowClient(tracking_uri=options.tracking)
    run = client.get_run(summary.run_id)
    assert run.info.status == "FINISHED"
    for name, value in flatten(to_dict(tiny())).items():
        assert run.data.params[name] == str(value)
    for name in ("train_loss", "val_bleu_4", "val_change_accuracy"):
        logged = client.get_metric_history(summary.run_id, name)
        assert [point.step for point in logged] == [1, 2]
        assert [point.value for point in logged] == [row[name] for row in summary.history]
    artifacts = {item.path for item in client.list_artifacts(summary.run_id, "bundle")}
    assert "bundle/model.safetensors" in artifacts


def test_the_best_epoch_is_kept(trained):
    _, summary = trained
    best = max(summary.history, key=lambda row: row["val_bleu_4"])
    assert summary.metrics["epoch"] == best["epoch"]
    assert summary.metrics["val_bleu_4"] == best["val_bleu_4"]
    assert json.loads((Path(summary.bundle) / "metrics.json").read_text()) == summary.metrics
    HiSem.from_pretrained(summary.bundle)


def test_an_epoch_leaves_out_fewer_pairs_than_workers(trained, shards):
    options, summary = trained
    tiles = len(read_splits(shards, ("train",))["train"])
    for row in summary.history:
        assert tiles - options.execution.workers < row["train_pairs"] <= tiles


def test_a_finished_run_is_not_trained_again(trained):
    options, summary = trained
    again = train(tiny(), options)
    assert again.finished_before
    assert again.metrics == summary.metrics
    assert again.run_id == summary.run_id


def test_another_experiment_under_the_same_name_is_refused(trained):
    options, _ = trained
    with pytest.raises(ConfigError, match=r"training.learning_rate: 0.001 then, 0.01 now"):
        train(tiny(learning_rate=0.01), options)


def test_a_batch_that_workers_cannot_share_is_refused(trained):
    options, _ = trained
    with pytest.raises(ConfigError, match="each of the 2 workers needs a pair"):
        train(tiny(batch_size=1), options)


def test_a_loss_that_is_not_finite_names_the_tiles(trained):
    options, _ = trained
    with pytest.raises(TrainingError, match=r"not finite.*Tiles: scene_") as caught:
        train(tiny(learning_rate=100, weight_decay=1000, warmup_steps=0, clip_norm=0), replace(options, name="nan"))
    assert "training.learning_rate" in str(caught.value)
    runs = mlflow.MlflowClient(tracking_uri=options.tracking).search_runs(["1"], "attributes.run_name = 'nan'")
    assert [run.info.status for run in runs] == ["FAILED"]


def test_a_trained_model_is_tuned_and_keeps_its_words(trained, shards):
    options, summary = trained
    tuned = replace(options, name="tuned", init=summary.bundle, register="")
    again = train(tiny(epochs=1, vocabulary_min_count=1), tuned)
    old, new = HiSem.from_pretrained(summary.bundle), HiSem.from_pretrained(again.bundle)
    assert new.vocabulary.words[: len(old.vocabulary)] == old.vocabulary.words
    assert len(new.vocabulary) > len(old.vocabulary)
    assert again.registered == ""
    # One epoch further from a trained model is nearer to it than to a new one.
    assert again.history[0]["train_loss"] < summary.history[0]["train_loss"]
    with pytest.raises(ConfigError, match="started from another bundle"):
        train(tiny(epochs=1, vocabulary_min_count=1), replace(tuned, init=again.bundle))
    wider = tiny(epochs=1)
    wider = replace(wider, model=replace(wider.model, bdam=replace(wider.model.bdam, heads=4)))
    with pytest.raises(ConfigError, match=r"model\.bdam\.heads is 2 in the trained model, 4 asked for"):
        train(wider, replace(tuned, name="wider"))


def test_the_best_model_is_registered_with_its_figures(trained, shards, tmp_path):
    options, summary = trained
    assert summary.registered == (
        "models:/hisem-demo/1 is registered; the alias champion moves to version 1: there was no champion before it "
        f"(bleu_4 {summary.metrics['val_bleu_4']:.4f})."
    )
    client = mlflow.MlflowClient(tracking_uri=options.tracking)
    figures = {item.path for item in client.list_artifacts(summary.run_id, "figures")}
    assert figures == {f"figures/{name}.png" for name in ("losses", "threshold", "experts", "tiles")}
    tags = client.get_run(summary.run_id).data.tags
    splits = read_splits(shards, ("train", "val"))
    assert {tags["data.train"], tags["data.val"]} == {split.fingerprint() for split in splits.values()}
    assert tags["champion"] == "moved"
    assert tags["version.hisem"] == hisem.__version__
    steps = client.get_metric_history(summary.run_id, "step/loss")
    assert [point.step for point in steps][-1] == sum(int(row["train_steps"]) for row in summary.history)
    # The curve's value at the threshold in force is the score of the epoch, since both are of one pass.
    assert summary.metrics["val_best_bleu_4"] >= summary.metrics["val_bleu_4"] - 1e-9
    assert sum(summary.metrics[f"val_expert_{number}"] for number in range(4)) in (0, pytest.approx(1))


def test_models_of_synthetic_data_leave_the_champion_alone_unless_asked(trained, shards):
    options, summary = trained
    client = mlflow.MlflowClient(tracking_uri=options.tracking)
    assert [model.name for model in client.search_registered_models()] == ["hisem-demo"]
    metric = f"bleu_4 {summary.metrics['val_bleu_4']:.4f}"
    named = replace(options, register="hisem", promote=True)
    assert train(tiny(), replace(named, promote=False)).registered == summary.registered  # finished: nothing is done

    run = tracking.Run(options.tracking, summary.run_id)
    registration = Registration("hisem", True, False, lambda: None)
    split, known = read_splits(shards, ("val",))["val"], RunFile.read(options.folder)
    assert known is not None
    refused = promote(known, options.tracking, "bleu_4", split, registration).registered
    assert refused.startswith("models:/hisem/1 is registered; the alias champion would move to version 1")
    assert tracking.champion(options.tracking) is None
    assert run.tag("champion") == "stays"

    promoted = train(tiny(), named)
    assert promoted.registered == (
        "models:/hisem/1 is registered; the alias champion moves to version 1: there was no champion before it "
        f"({metric})."
    )
    assert promoted.finished_before
    assert (champion := tracking.champion(options.tracking)) is not None
    assert champion.version == "1"
    client.delete_registered_model("hisem")
    train(tiny(), replace(named, register=None))  # as it was
    known = RunFile.read(options.folder)
    assert known is not None
    assert known.registered.startswith("models:/hisem-demo/1 ")


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(trained, caplog):
    options = replace(trained[0], name="damaged", register="", execution=Execution(keep=2))
    whole = train(tiny(), options)
    first, second = Checkpoints(options.folder, 2).entries()
    path = Path(options.folder, "checkpoints", second.name, "optimizer.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    run_file = Path(options.folder, "hisem_run.json")
    run_file.write_text(json.dumps(json.loads(run_file.read_text()) | {"finished": False}))
    again = train(tiny(), options)
    assert f"{second.name}: this checkpoint is damaged" in caplog.text
    assert [row["train_loss"] for row in again.history] == pytest.approx(
        [row["train_loss"] for row in whole.history], abs=1e-6
    )
    assert [entry.name == first.name for entry in Checkpoints(options.folder, 2).entries()] == [True, False]


def test_too_few_gpus_end_with_the_numbers(trained):
    options, _ = trained
    with pytest.raises(ResourceError, match="needs 2 GPUs, the cluster has 0"):
        train(tiny(), replace(options, name="gpu", execution=Execution(gpu=True)))


def test_an_empty_split_is_named(archive, ray_cluster, tmp_path):
    from hisem.archive.catalogue import read_catalogue, write_catalogue
    from hisem.distributed.archive import shard_archive

    catalogue = read_catalogue(storage.join(archive, "catalogue.parquet"))
    keep = [split != "val" for split in catalogue.column("split").to_pylist()]
    write_catalogue(catalogue.filter(keep), str(tmp_path / "c.parquet"))
    out = str(tmp_path / "out")
    shard_archive(str(tmp_path / "c.parquet"), out, 32, storage.join(archive, "references.parquet"))
    with pytest.raises(DatasetError, match="split val has no labelled tiles"):
        read_splits(out, ("train", "val"))
    with pytest.raises(StorageError, match="no shards there"):
        read_splits(str(tmp_path / "nothing"), ("train",))


def test_pixels_are_those_of_the_split(shards):
    splits = read_splits(shards, ("train", "val", "test"))
    for split in splits.values():
        rows = [tile for batch in pixels(split).iter_batches(batch_size=None) for tile in batch["tile_id"]]
        assert sorted(rows) == sorted(split.rows.column("tile_id").to_pylist())
    table = storage.read_parquet(storage.list_files(shards)[0])
    assert decode(table.slice(0, 3), 32)["before"].shape == (3, 32, 32, 3)


def test_epochs_count_from_one_wherever_they_are_shown(trained):
    options, summary = trained
    assert [row["epoch"] for row in summary.history] == [1, 2]
    best = max(summary.history, key=lambda row: row["val_bleu_4"])
    logged = [epoch_line(row, "bleu_4") for row in summary.history]
    assert [line.split()[:3] for line in logged] == [["epoch", "1", "done:"], ["epoch", "2", "done:"]]
    with (Path(summary.bundle) / "metrics.json").open(encoding="utf-8") as file:
        assert json.load(file)["epoch"] == best["epoch"] == summary.metrics["epoch"]
    listed = Checkpoints(options.folder, keep=1).best()
    assert listed is not None
    assert listed.epoch == best["epoch"]
