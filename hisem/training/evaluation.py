"""A model's captions of labelled tiles, and what they score.

Shapes: B pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from hisem.model.hisem import HiSem
from hisem.text.metrics import caption_scores
from hisem.text.scoring import change_scores
from hisem.training.batches import Batch


@dataclass(frozen=True)
class TileResult:
    """One labelled tile beside what the model says of it."""

    tile_id: str
    caption: str
    predicted: bool
    """Whether the model calls the tile changed."""
    change_probability: float | None
    logprob: float
    references: list[str]
    changed: bool


@torch.no_grad()
def caption_batches(
    model: HiSem, batches: Iterable[Batch], beam: int = 1, keep_unknown: bool = False
) -> list[TileResult]:
    """Caption every tile of `batches`; leaves the model in eval mode. `keep_unknown`: as `HiSem.caption`."""
    model.eval()
    device = next(model.parameters()).device
    results = []
    for batch in batches:
        captions = model.caption(batch.before.to(device), batch.after.to(device), beam, keep_unknown=keep_unknown)
        for tile, caption, references, changed in zip(
            batch.tile_ids, captions, batch.references, batch.changed.tolist(), strict=True
        ):
            results.append(
                TileResult(
                    tile,
                    caption.text,
                    caption.changed,
                    caption.change_probability,
                    caption.logprob,
                    references,
                    changed,
                )
            )
    return results


def score(results: Sequence[TileResult], meteor: bool = False) -> dict[str, float]:
    """Validation metrics of a set of tiles as plain floats; fractions, CIDEr-D as coco-caption gives it.

    Keys are those of `CaptionScores` and `change_` + those of `ChangeScores`; `changed_bleu_4` is
    BLEU-4 over the changed tiles alone, absent where there are none. Metrics that are unavailable are absent.
    """
    captions = caption_scores([r.caption for r in results], [r.references for r in results], meteor=meteor)
    change = change_scores([r.predicted for r in results], [r.changed for r in results])
    metrics = captions.values() | {
        "change_accuracy": change.accuracy,
        "change_precision": change.precision,
        "change_recall": change.recall,
        "change_f1": change.f1,
    }
    moved = [r for r in results if r.changed]
    if moved:
        alone = caption_scores([r.caption for r in moved], [r.references for r in moved], meteor=False)
        metrics["changed_bleu_4"] = alone.bleu_4
    return metrics
