"""The alias `champion` over the lives of several models, on a real registry and with real captions."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch

from hisem import tracking
from hisem.distributed import champion as champions
from hisem.distributed.champion import Rights, crown, version_tags
from hisem.distributed.dataset import Split, read_splits
from hisem.distributed.evaluator import caption_split
from hisem.errors import StorageError, TrackingError
from hisem.model.bundle import digest
from hisem.model.hisem import HiSem
from hisem.text.metrics import caption_scores

METRIC = "bleu_1"
PLAIN = Rights()
PROMOTE = Rights(promote=True)
SYNTHETIC = Rights(synthetic=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    return tracking.sqlite_uri(str(tmp_path_factory.mktemp("registry")))


@pytest.fixture(scope="module")
def splits(shards) -> dict[str, Split]:
    return read_splits(shards, ("val", "test"))


@pytest.fixture(scope="module")
def dumb(trained, tmp_path_factory) -> Path:
    """The trained model with a decoder that says one word on end."""
    folder = tmp_path_factory.mktemp("dumb") / "bundle"
    model = HiSem.from_pretrained(trained[1].bundle)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
    model.save_pretrained(folder, {})
    return folder


@pytest.fixture(scope="module")
def true_scores(trained, dumb, splits) -> dict[str, float]:
    """What both bundles score on the validation split."""
    scores = {}
    for name, bundle in {"trained": Path(trained[1].bundle), "dumb": dumb}.items():
        results = caption_split(splits["val"], bundle)
        captions, references = [r.caption for r in results], [r.references for r in results]
        scores[name] = caption_scores(captions, references, meteor=False).bleu_1
    return scores


@dataclass
class Registry:
    """One registered model of a test's own."""

    store: str
    name: str
    val: Split

    def add(self, bundle: Path, score: float, split: Split | None = None, metric: str = METRIC) -> tuple[Any, str]:
        """A run that trained `bundle` and scored `score` on `split` (default: val): the run and its version."""
        run = tracking.start_run(self.store, self.name)
        run.folder(bundle, "bundle")
        tags = version_tags(score, metric, split or self.val)
        return run, tracking.register(run, digest(bundle), tags, self.name)

    def crown(self, added: tuple[Any, str], score: float, rights: Rights = PLAIN) -> tuple[bool, str]:
        """What `crown` says, which the run must say, too."""
        run, version = added
        verdict = crown(run, version, score, METRIC, self.val, self.name, rights)
        assert run.tag("champion") == ("moved" if verdict.moved else "stays")
        assert verdict.moved == (self.champion == version)
        return verdict.moved, verdict.reason

    def train(self, bundle: Path, score: float, rights: Rights = PLAIN) -> tuple[bool, str]:
        return self.crown(self.add(bundle, score), score, rights)

    @property
    def champion(self) -> str | None:
        found = tracking.champion(self.store, self.name)
        return found.version if found else None

    def alias(self, version: str) -> None:
        tracking.set_champion(self.store, version, self.name)

    def tags(self, version: str) -> dict[str, str]:
        client = mlflow.MlflowClient(tracking_uri=self.store, registry_uri=self.store)
        return client.get_model_version(self.name, version).tags


@pytest.fixture
def registry(store, splits, request) -> Registry:
    return Registry(store, re.sub(r"\W+|_", "-", request.node.name), splits["val"])


def test_the_alias_follows_the_best(registry, bundle, dumb, tmp_path):
    assert registry.train(dumb, 0.5) == (
        True,
        "moves to version 1: there was no champion before it (bleu_1 0.5000)",
    )
    assert registry.train(bundle, 0.7) == (
        True,
        "moves from version 1 to version 2, which is better: bleu_1 0.5000 there, 0.7000 here, both on the same "
        "validation split",
    )
    assert registry.train(dumb, 0.6) == (
        False,
        "stays with version 2, which is better: bleu_1 0.7000 there, 0.6000 here, both on the same validation split",
    )
    assert registry.train(dumb, 0.7) == (
        False,
        "stays with version 2, which is as good: bleu_1 0.7000 there, 0.7000 here, both on the same validation split",
    )
    assert registry.champion == "2"
    folder = tracking.resolve_model(f"models:/{registry.name}@champion", registry.store, tmp_path)
    assert digest(folder) == digest(bundle)
    HiSem.from_pretrained(folder)


@pytest.mark.parametrize("rights", [PLAIN, SYNTHETIC, PROMOTE], ids=["plain", "synthetic", "promote"])
@pytest.mark.parametrize("better", [True, False])
@pytest.mark.parametrize("champion", ["none", "same split", "other split", "by hand"])
def test_who_may_move_the_alias(registry, dumb, splits, champion, better, rights):
    """All transitions: only what was validated on the champion's own split moves it without --promote."""
    if champion != "none":
        _, first = registry.add(dumb, 0.5, splits["test" if champion == "other split" else "val"])
        tags = {f"score.{METRIC}.{splits['val'].fingerprint()}": "0.5"}  # so that nothing is scored here
        if champion == "by hand":
            tags["fingerprint"] = ""
        tracking.tag_version(registry.store, first, tags, registry.name)
        registry.alias(first)
    before = registry.champion if champion != "none" else None  # there is no registered model yet
    moved, reason = registry.train(dumb, 0.6 if better else 0.4, rights)
    if champion == "none":
        allowed, wins = rights.promote or not rights.synthetic, True
    else:
        allowed, wins = rights.promote or champion == "same split", better
    assert moved == (allowed and wins)
    assert registry.champion == (("1" if champion == "none" else "2") if moved else before)
    assert ("run again with --promote" in reason) == (wins and not allowed)
    assert ("would move" in reason) == (wins and not allowed)


def test_a_run_that_was_lost_moves_nothing(registry, dumb):
    def lost() -> None:
        raise StorageError("lost")

    run, version = registry.add(dumb, 0.5)
    with pytest.raises(StorageError, match="lost"):
        crown(run, version, 0.5, METRIC, registry.val, registry.name, Rights(require=lost))
    assert registry.champion is None


def test_a_score_on_other_data_is_not_believed(registry, bundle, dumb, splits, true_scores):
    assert true_scores["dumb"] < true_scores["trained"] < 0.99
    first = registry.add(dumb, 0.99, splits["test"])
    registry.alias(first[1])
    added = registry.add(bundle, true_scores["trained"])
    moved, reason = registry.crown(added, true_scores["trained"])
    assert not moved
    assert reason.startswith("would move from version 1 to version 2, which is better")
    assert "run again with --promote" in reason
    tag = f"score.{METRIC}.{splits['val'].fingerprint()}"
    assert float(registry.tags("1")[tag]) == pytest.approx(true_scores["dumb"], abs=1e-12)
    tracking.tag_version(registry.store, "1", {tag: "nan"}, registry.name)  # so that it is scored again
    moved, reason = registry.crown(added, true_scores["trained"], PROMOTE)
    assert moved
    assert reason == (
        f"moves from version 1 to version 2, which is better: bleu_1 {true_scores['dumb']:.4f} there, "
        f"{true_scores['trained']:.4f} here, both on the same validation split; version 1 was scored anew for this"
    )


def test_a_score_by_another_metric_is_not_compared(registry, bundle, dumb, true_scores):
    registry.alias(registry.add(bundle, 0.0, metric="rouge_l")[1])
    moved, reason = registry.train(dumb, true_scores["dumb"])
    assert not moved
    assert f"bleu_1 {true_scores['trained']:.4f} there" in reason


def test_a_champion_is_scored_anew_once(registry, bundle, dumb, splits, true_scores):
    registry.alias(registry.add(bundle, 0.0, splits["test"])[1])
    better = registry.add(dumb, true_scores["dumb"])
    assert not registry.crown(better, true_scores["dumb"])[0]
    noted = registry.tags("1")
    tag = f"score.{METRIC}.{splits['val'].fingerprint()}"
    assert float(noted[tag]) == pytest.approx(true_scores["trained"], abs=1e-12)
    assert (noted["metric_value"], noted["fingerprint"]) == ("0.0", splits["test"].fingerprint())

    # The next run reads the tag: a value that captioning could not give decides.
    tracking.tag_version(registry.store, "1", {tag: "-1.0"}, registry.name)
    moved, reason = registry.crown(better, true_scores["dumb"], PROMOTE)
    assert moved
    assert "bleu_1 -1.0000 there" in reason
    assert "anew" not in reason


@pytest.mark.parametrize("value", ["about 0.5", "nan"])
def test_a_tag_that_is_no_score_is_not_believed(registry, bundle, dumb, true_scores, value):
    registry.alias(registry.add(bundle, 0.5)[1])
    tracking.tag_version(registry.store, "1", {"metric_value": value}, registry.name)
    rival = registry.add(dumb, true_scores["dumb"])
    moved, reason = registry.crown(rival, true_scores["dumb"])
    assert not moved
    assert f"bleu_1 {true_scores['trained']:.4f} there" in reason
    assert "anew" in reason
    assert "anew" not in registry.crown(rival, true_scores["dumb"])[1]  # what was noted goes over it


@pytest.mark.parametrize("loss", ["all files", "the weights"])
def test_a_champion_that_is_lost_stays(registry, bundle, dumb, splits, loss):
    registry.alias(registry.add(bundle, 0.1, splits["test"])[1])
    client = mlflow.MlflowClient(tracking_uri=registry.store, registry_uri=registry.store)
    source = Path(client.get_model_version_download_uri(registry.name, "1").removeprefix("file://"))
    if loss == "all files":
        shutil.rmtree(source)
    else:
        (source / "model.safetensors").write_bytes(b"")
    moved, reason = registry.train(dumb, 0.9)
    assert not moved
    assert reason.startswith("stays with version 1, which cannot be scored on this run's validation split (")
    assert reason.endswith("mend it, or give the alias to version 2 (bleu_1 0.9000) in MLflow")


def test_a_metric_that_cannot_be_computed_is_told(registry, bundle, splits, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")  # no Java
    registry.alias(registry.add(bundle, 0.1)[1])
    run, version = registry.add(bundle, 0.9, metric="meteor")
    verdict = crown(run, version, 0.9, "meteor", splits["val"], registry.name)
    assert not verdict.moved
    assert "METEOR needs Java" in verdict.reason


def test_a_verdict_is_given_once(registry, bundle, dumb):
    added = registry.add(bundle, 0.7)
    first = registry.crown(added, 0.7)
    assert registry.crown(added, 0.7) == (True, "version 1 is the champion already")
    assert added[0].tag("champion.reason") == first[1]

    # The driver was killed between moving the alias and telling the run.
    cut_off = registry.add(dumb, 0.8)
    registry.alias(cut_off[1])
    assert registry.crown(cut_off, 0.8) == (True, "version 2 is the champion already")
    assert cut_off[0].tag("champion.reason") == "version 2 is the champion already"

    # Meanwhile another model has become champion: the first is no longer.
    moved, reason = registry.crown(added, 0.7)
    assert not moved
    assert reason.startswith("stays with version 2, which is better: bleu_1 0.8000 there, 0.7000 here")


def racing(registry: Registry, monkeypatch: pytest.MonkeyPatch, rivals: list[str]) -> None:
    """While a champion is compared, another run gives the alias to the next of `rivals`."""
    compare = champions._compare

    def compare_and_lose(*arguments):
        verdict = compare(*arguments)
        if rivals:
            registry.alias(rivals.pop(0))
        return verdict

    monkeypatch.setattr(champions, "_compare", compare_and_lose)


@pytest.mark.parametrize(("rival", "champion"), [(0.9, "2"), (0.7, "3")])
def test_an_alias_that_moves_meanwhile_is_compared_anew(registry, bundle, dumb, monkeypatch, rival, champion):
    registry.alias(registry.add(dumb, 0.0)[1])
    _, faster = registry.add(bundle, rival)
    racing(registry, monkeypatch, [faster])
    moved, reason = registry.train(bundle, 0.8)
    assert registry.champion == champion
    assert moved == (champion == "3")
    assert "version 2" in reason
    assert f"bleu_1 {rival:.4f} there, 0.8000 here" in reason


def test_an_alias_that_never_rests_is_left_alone(registry, dumb, monkeypatch):
    versions = [registry.add(dumb, 0.0)[1] for _ in range(4)]
    registry.alias(versions.pop(0))
    racing(registry, monkeypatch, versions)
    moved, reason = registry.train(dumb, 0.8)
    assert not moved
    assert registry.champion == "4"
    assert reason.startswith("stays: other runs moved the alias 3 times while version 5 (bleu_1 0.8000)")


def test_a_registry_that_fails_is_told(registry, bundle):
    run = tracking.start_run(registry.store, registry.name)
    with pytest.raises(TrackingError, match=f"models:/{registry.name} in .* cannot be found"):
        crown(run, "1", 0.5, METRIC, registry.val, registry.name)
