"""A model's captions of labelled tiles, and what they score.

Shapes: B pairs, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from hisem import storage
from hisem.model.hisem import HiSem
from hisem.text.metrics import CaptionScorer, CaptionScores, caption_scores
from hisem.text.scoring import change_scores
from hisem.text.threshold import ThresholdCurve, threshold_curve
from hisem.text.vocabulary import Vocabulary
from hisem.training.batches import Batch


@dataclass(frozen=True)
class TileResult:
    """One labelled tile beside what the model says of it."""

    tile_id: str
    caption: str
    predicted: bool
    """Whether the model calls the tile changed."""
    change_probability: float | None
    """The image router's p(changed); None for a model without one."""
    logprob: float
    references: list[str]
    changed: bool
    caption_if_unchanged: str | None = None
    """What the model says when the tile takes the unchanged path; this and the next two are None without a router."""
    caption_if_changed: str | None = None
    """What the model says when the tile takes the changed path."""
    expert_counts: list[int] | None = None
    """For each expert how many choices of the tile's tokens fall on it on the changed path."""


@torch.no_grad()
def caption_batches(
    model: HiSem, batches: Iterable[Batch], beam: int = 1, keep_unknown: bool = False
) -> list[TileResult]:
    """Caption every tile of `batches`, on both paths; leaves the model in eval mode.

    `keep_unknown`: as `HiSem.caption`.
    """
    model.eval()
    device = next(model.parameters()).device
    experts = model.config.hasd.moe.experts
    results = []
    for batch in batches:
        said = model.caption_paths(batch.before.to(device), batch.after.to(device), beam, keep_unknown=keep_unknown)
        for tile, paths, references, changed in zip(
            batch.tile_ids, said, batch.references, batch.changed.tolist(), strict=True
        ):
            caption, moved = paths.chosen, paths.changed
            assert caption.logprob is not None  # both paths are decoded
            results.append(
                TileResult(
                    tile,
                    caption.text,
                    caption.changed,
                    caption.change_probability,
                    caption.logprob,
                    references,
                    changed,
                    None if moved is None else paths.unchanged.text,
                    None if moved is None else moved.text,
                    None if paths.experts is None else np.bincount(paths.experts.flat, minlength=experts).tolist(),
                )
            )
    return results


def expert_load(results: Sequence[TileResult]) -> npt.NDArray[np.int64] | None:
    """How often each of the E experts was chosen by the tokens of the tiles that the model calls changed.

    All zero where it calls none so; None for a model without a router, whose tiles meet no expert.
    """
    counts = [result.expert_counts for result in results]
    known = np.array([count for count in counts if count is not None], np.int64)  # tiles E
    if not len(known):
        return None
    return known[[result.predicted for result in results]].sum(axis=0)


def router_curve(results: Sequence[TileResult], vocabulary: Vocabulary | None = None) -> ThresholdCurve | None:
    """What every threshold of the router would give (see `hisem.text.threshold`); None without a router."""
    routed = [
        (r.change_probability, r.caption_if_unchanged, r.caption_if_changed)
        for r in results
        if r.change_probability is not None and r.caption_if_unchanged is not None and r.caption_if_changed is not None
    ]
    if not routed:
        return None
    probabilities, still, moved = zip(*routed, strict=True)
    return threshold_curve(
        probabilities, still, moved, [r.references for r in results], [r.changed for r in results], vocabulary
    )


def score(results: Sequence[TileResult], scorer: CaptionScorer | None = None) -> dict[str, float]:
    """Validation metrics of a set of tiles as plain floats; fractions, CIDEr-D as coco-caption gives it.

    Keys are those of `CaptionScores` and `change_` + those of `ChangeScores`; `changed_bleu_4` is
    BLEU-4 over the changed tiles alone, absent where there are none. `router_accuracy` is the share of tiles that
    the image router sends down the right path, absent for a model without one. Metrics that are unavailable are
    absent; METEOR and S*m need a `scorer` (of protocol words), whose one process may serve any number of epochs.
    """
    captions = _scored(results, scorer)
    change = change_scores([r.predicted for r in results], [r.changed for r in results])
    metrics = captions.values() | {
        "change_accuracy": change.accuracy,
        "change_precision": change.precision,
        "change_recall": change.recall,
        "change_f1": change.f1,
    }
    if all(r.change_probability is not None for r in results):
        metrics["router_accuracy"] = change.accuracy  # `predicted` is then the router's choice
    moved = [r for r in results if r.changed]
    if moved:
        metrics["changed_bleu_4"] = _scored(moved, None).bleu_4
    return metrics


def _scored(results: Sequence[TileResult], scorer: CaptionScorer | None) -> CaptionScores:
    captions, references = [r.caption for r in results], [r.references for r in results]
    return scorer.score(captions, references) if scorer else caption_scores(captions, references, meteor=False)


def results_table(results: Sequence[TileResult]) -> pa.Table:
    """One row a tile, the fields of `TileResult`."""
    return pa.Table.from_pylist([asdict(result) for result in results], schema=RESULT)


def read_results(path: Path) -> list[TileResult]:
    """The results in a Parquet file of `results_table`. Raises `StorageError` where it is damaged."""
    return [TileResult(**row) for row in storage.read_parquet(path, RESULT.names).to_pylist()]


RESULT = pa.schema(
    {
        "tile_id": pa.string(),
        "caption": pa.string(),
        "predicted": pa.bool_(),
        "change_probability": pa.float64(),
        "logprob": pa.float64(),
        "references": pa.list_(pa.string()),
        "changed": pa.bool_(),
        "caption_if_unchanged": pa.string(),
        "caption_if_changed": pa.string(),
        "expert_counts": pa.list_(pa.int64()),
    }
)
