"""Which registered version is champion.

The alias moves by itself only among versions that were validated on the same split: there a better score is a better
model. A version of a run on another split is compared, too, but moves the alias only where a person asked for it.
"""

from __future__ import annotations

import logging
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hisem import __version__, tracking
from hisem.distributed import session
from hisem.distributed.dataset import Split
from hisem.distributed.evaluator import caption_split
from hisem.distributed.holding import Require
from hisem.errors import HisemError, TrainingError
from hisem.model.hisem import HiSem
from hisem.text.metrics import CaptionScorer
from hisem.tracking import ModelVersion
from hisem.training.evaluation import score as score_results
from hisem.training.recipe import NEED_METEOR

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a version is compared anew because another run moved the alias meanwhile."""


def _always() -> None:
    """Raise nothing: for who holds no run."""


@dataclass(frozen=True)
class Rights:
    """What a run may do to the alias."""

    promote: bool = False
    """Move it from a champion that was validated on another split, and to a model of synthetic data."""
    synthetic: bool = False
    """The run is of synthetic data, and the registered model is not one for that."""
    require: Require = _always
    """Raises where the run is no longer this driver's; called right before the alias moves."""


@dataclass(frozen=True)
class Verdict:
    """Whether a version is champion now, and why."""

    moved: bool
    """The alias is at the version."""
    reason: str
    """One sentence, without a full stop."""


def version_tags(score: float, metric: str, split: Split) -> dict[str, str]:
    """Tags with which a version is registered: its `score` on the validation split, as `crown` looks for it."""
    return {
        "metric": metric,
        "metric_value": repr(score),
        "fingerprint": split.fingerprint(),
        "hisem_version": __version__,
    }


def crown(
    run: tracking.Run,
    version: str,
    score: float,
    metric: str,
    split: Split,
    name: str = tracking.MODEL,
    rights: Rights = Rights(),
) -> Verdict:
    """Give the alias `champion` of the model `name` to `version` where it is the first or strictly better.

    Where there is no champion, `version` becomes it, unless it is of synthetic data. Where the champion was
    registered with another validation split than `split`, or without one, the alias stays and the reason states
    that it would move. `rights.promote` lifts both.

    `score` is what the version's bundle scores by `metric` (a key of `training.evaluation.score`) on `split`, the
    run's validation split. A champion whose score on these very tiles is not known is scored on them first, and
    its version tagged with it. One that cannot be scored stays. The run is tagged with `champion`, `moved` or
    `stays`, and `champion.reason`.

    MLflow cannot move an alias on a condition: the alias is read again right before it is moved, and another
    run would have to move it in that instant to be overruled.

    Raises `TrackingError` where the registry fails.
    """
    for _ in range(ATTEMPTS):
        champion = tracking.champion(run.uri, name)
        if champion is not None and champion.version == version:
            return _crowned_before(run, version)
        verdict = _compare(run.uri, champion, version, score, metric, split, rights)
        if not verdict.moved:
            break
        if _version(tracking.champion(run.uri, name)) == _version(champion):
            rights.require()
            tracking.set_champion(run.uri, version, name)
            break
    else:
        verdict = Verdict(
            False,
            f"stays: other runs moved the alias {ATTEMPTS} times while version {version} ({metric} {score:.4f}) was "
            "compared; run again to compare it anew",
        )
    return _tell(run, verdict)


def _compare(
    uri: str,
    champion: ModelVersion | None,
    version: str,
    score: float,
    metric: str,
    split: Split,
    rights: Rights,
) -> Verdict:
    """Whether `version` may take the place of `champion`."""
    if champion is None:
        if rights.synthetic and not rights.promote:
            return Verdict(
                False,
                f"would move to version {version} ({metric} {score:.4f}), as there is none, but the run is of "
                "synthetic data; run again with --promote to move it",
            )
        return Verdict(True, f"moves to version {version}: there was no champion before it ({metric} {score:.4f})")
    anew = ""
    known = _known_score(champion, metric, split.fingerprint())
    if known is None:
        try:
            known = _score_anew(uri, champion, metric, split)
        except HisemError as error:
            return Verdict(
                False,
                f"stays with version {champion.version}, which cannot be scored on this run's validation split "
                f"({str(error).rstrip('.')}): mend it, or give the alias to version {version} ({metric} {score:.4f}) "
                "in MLflow",
            )
        anew = f"; version {champion.version} was scored anew for this"
    scores = f"{metric} {known:.4f} there, {score:.4f} here, both on the same validation split{anew}"
    if score > known and champion.tags.get("fingerprint") != split.fingerprint() and not rights.promote:
        return Verdict(
            False,
            f"would move from version {champion.version} to version {version}, which is better: {scores}. It stays, as "
            f"version {champion.version} was validated on other data when it was registered; run again with --promote "
            "to move it",
        )
    if score > known:
        return Verdict(True, f"moves from version {champion.version} to version {version}, which is better: {scores}")
    compared = "as good" if score == known else "better"
    return Verdict(False, f"stays with version {champion.version}, which is {compared}: {scores}")


def _known_score(champion: ModelVersion, metric: str, fingerprint: str) -> float | None:
    """What the champion is tagged with for this metric on these tiles: by a later run, or at its training."""
    tags = champion.tags
    value = tags.get(_score_tag(metric, fingerprint))
    if value is None and (tags.get("metric"), tags.get("fingerprint")) == (metric, fingerprint):
        value = tags.get("metric_value")
    try:
        known = float(value or "nan")
    except ValueError:
        return None  # someone wrote it by hand
    return known if math.isfinite(known) else None


def _score_anew(uri: str, champion: ModelVersion, metric: str, split: Split) -> float:
    """Score the champion on `split` and note it on its version. Raises `HisemError` where that cannot be done."""
    log.info("scoring the champion (version %s) on this run's validation split", champion.version)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = tracking.resolve_model(champion.reference, uri, Path(scratch))
        HiSem.from_pretrained(bundle)  # one that does not load is told here, not by an actor
        with session.cluster():
            results = caption_split(split, bundle)
    with CaptionScorer(meteor=metric in NEED_METEOR) as scorer:
        scores = score_results(results, scorer)
    if metric not in scores:
        raise TrainingError(f"{metric} is unavailable: METEOR needs Java, changed_bleu_4 needs changed tiles.")
    noted = {_score_tag(metric, split.fingerprint()): repr(scores[metric])}
    tracking.tag_version(uri, champion.version, noted, champion.name)
    return scores[metric]


def _score_tag(metric: str, fingerprint: str) -> str:
    return f"score.{metric}.{fingerprint}"


def _version(champion: ModelVersion | None) -> str | None:
    return champion.version if champion else None


def _crowned_before(run: tracking.Run, version: str) -> Verdict:
    """The verdict where the run was cut off after the alias had moved. What the run said of it then stays."""
    verdict = Verdict(True, f"version {version} is the champion already")
    return verdict if run.tag("champion") == "moved" else _tell(run, verdict)


def _tell(run: tracking.Run, verdict: Verdict) -> Verdict:
    run.tags({"champion": "moved" if verdict.moved else "stays", "champion.reason": verdict.reason})
    return verdict
