"""What it saves that surely unchanged pairs skip the decoder: paper size, random weights, a ratio within one process.

    python tests/benchmarks/bench_fast_path.py --threads 2

The bound is put where it leaves the asked share of the batch to the decoder, and the model's threshold with it. Both
sides of a ratio alternate, and the decoder alone with them: its share is the most that can be saved. Every figure is
the median of `--repeats` runs after one that does not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hisem.model.hisem import HiSem
from hisem.text.vocabulary import END, SPECIALS, Vocabulary
from hisem.training.presets import preset

WORDS = 468
"""Vocabulary of LEVIR-CC."""
TILE = 256


@dataclass(frozen=True)
class Options:
    """Measure the fast path."""

    batch: int = 20
    """Pairs of a batch."""
    changed: tuple[float, ...] = (0.05, 0.5)
    """Shares of the batch that are not sure and reach the decoder."""
    beams: tuple[int, ...] = (1, 3)
    """Beam widths."""
    words: int = 20
    """Words generated for every pair; the captions of LEVIR-CC have 7 on average and 39 at most."""
    repeats: int = 3
    """Runs that count; the median is shown."""
    threads: int = 0
    """Threads; 0 leaves torch's choice."""


def main(options: Options) -> None:
    """Print the table."""
    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    model = paper_model(options.words)
    before, after = (torch.randint(0, 256, (options.batch, 3, TILE, TILE), dtype=torch.uint8) for _ in range(2))
    probabilities = sorted(caption.change_probability or 0.0 for caption in model.caption(before, after))
    table = Table(title=f"caption() of {options.batch} pairs, {options.words} words, {torch.get_num_threads()} threads")
    for column in ("beam", "changed", "without, pairs/s", "with, pairs/s", "ratio", "decoder's share"):
        table.add_column(column, justify="right")
    for beam, share in product(options.beams, options.changed):
        asked = max(1, round(share * options.batch))
        bound = probabilities[-asked]
        model.change_threshold = bound
        whole, fast, decoder = times(model, before, after, beam, bound, options.repeats)
        speeds = (f"{options.batch / each:.3f}" for each in (whole, fast))
        table.add_row(
            str(beam), f"{asked / options.batch:.1%}", *speeds, f"{whole / fast:.3f} x", f"{decoder / whole:.1%}"
        )
    Console().print(table)


def paper_model(words: int) -> HiSem:
    """The paper's model with random weights, that never says END before `words` words are out."""
    config = preset("paper-levir-cc", {"model": {"decoder": {"max_length": words}}}).model
    vocabulary = Vocabulary((*SPECIALS, *(f"w{number}" for number in range(WORDS - len(SPECIALS)))))
    model = HiSem(config, vocabulary, pretrained=False).eval()
    with torch.no_grad():
        model.decoder.output.bias[END] = -1e4
    return model


@torch.no_grad()
def times(model: HiSem, before: Tensor, after: Tensor, beam: int, bound: float, repeats: int) -> list[float]:
    """Median seconds of a batch without and with the fast path, and of the decoder alone on the whole batch."""
    tokens = model.backbone(model.preprocess(torch.cat([before, after])))
    memory = model.change(*tokens.chunk(2)).memory
    runs: list[Callable[[], object]] = [
        lambda: model.caption(before, after, beam),
        lambda: model.caption(before, after, beam, sure_unchanged=bound),
        lambda: model.generate(memory, beam, allow_unknown=False),
    ]
    rounds = [[seconds(run) for run in runs] for _ in range(repeats + 1)][1:]
    return [statistics.median(each) for each in zip(*rounds, strict=True)]


def seconds(run: Callable[[], object]) -> float:
    """Wall time of `run`."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(tyro.cli(Options))
