"""What an evaluation leaves behind: the captions as a table, the figures, and one page with all of it."""

from __future__ import annotations

from pathlib import Path

from hisem import storage
from hisem.distributed.evaluator import Evaluation, draw_explanations, draw_samples
from hisem.report.curves import save
from hisem.report.page import Picture, render_page
from hisem.report.routing import expert_load_figure, threshold_figure

READINGS = {
    "samples": (
        "Samples",
        "Tiles of the split, before and after, with what people wrote and, in colour, what the model says: changed "
        "tiles first, a quarter unchanged ones last.",
    ),
    "explained": (
        "Where the model saw change",
        "The strength of change over the token grid, bright where the two dates differ most to the model, and the "
        "expert that each token of a changed tile went to first. Bright places should lie on what the caption names.",
    ),
    "threshold": (
        "The router's threshold",
        "What BLEU-4 and the F1 of change detection would be were the threshold another. Where the two vertical lines "
        "stand apart and BLEU-4 differs between them, moving the threshold pays: choose it on val, not on test.",
    ),
    "experts": (
        "Load of the experts",
        "The share of the tokens' choices that fell on each expert, over the tiles that the model calls changed. "
        "Experts near the dashed line share the work evenly; one near zero is idle.",
    ),
}
"""Heading of each figure and how to read it, in the order of the page."""


def write_evaluation(output: str, data: str, model: Path, split: str, evaluation: Evaluation, title: str) -> None:
    """Write captions.parquet, the figures as PNG, and index.html, which holds them all, into a folder.

    `data` and `model` are the shards and the bundle that `evaluation` is of. A model without a router has neither
    threshold.png nor experts.png. Raises `StorageError` where the folder cannot be written.
    """
    paths = {name: storage.join(output, f"{name}.png") for name in READINGS}
    storage.write_parquet(evaluation.table(), storage.join(output, "captions.parquet"))
    draw_samples(data, evaluation.results, split, paths["samples"])
    draw_explanations(data, evaluation.results, model, split, paths["explained"])
    drawn = ["samples", "explained"]
    if evaluation.curve:
        save(threshold_figure(evaluation.curve, evaluation.threshold), paths["threshold"])
        drawn.append("threshold")
    if evaluation.expert_load:
        save(expert_load_figure([evaluation.expert_load]), paths["experts"])
        drawn.append("experts")
    pictures = [Picture(*READINGS[name], storage.read_bytes(paths[name])) for name in drawn]
    page = render_page(title, evaluation.rows, evaluation.published, evaluation.remarks, pictures)
    storage.write_bytes(storage.join(output, "index.html"), page.encode())
