"""How fast the model is: paper size, random weights, one process, ratios within it.

    python tests/benchmarks/bench_model.py                  # float32 on the CPU
    python tests/benchmarks/bench_model.py --device cuda    # bfloat16 on a GPU

Every figure is the median of `--repeats` runs after one that does not count. Achieved FLOP/s are those of the
matrix products, convolutions and attention that a pass needs, over its wall time; the machine's are those of one
large matrix product, timed between the passes that it is compared with.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from hisem.model.decoder import Decoder
from hisem.model.hisem import HiSem, HiSemConfig
from hisem.model.moe import MoEConfig, TokenMoE
from hisem.text.vocabulary import END, SPECIALS, START, Vocabulary
from hisem.training.batches import Batch
from hisem.training.epoch import make_optimizer, train_epoch
from hisem.training.presets import preset

WORDS = 468
"""Vocabulary of LEVIR-CC."""
CAPTION = 20
"""Words generated for every pair; the captions of LEVIR-CC have 7 on average and 39 at most."""
TILE = 256
MATMUL = 4096


@dataclass(frozen=True)
class Options:
    """Measure the model."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run: float32 on `cpu`, bfloat16 autocast on `cuda`."""
    batches: tuple[int, ...] = ()
    """Batch sizes. If not given: on a CPU 8, and 1 and 32 for the decoder; on a GPU 1, 64 and 512."""
    repeats: int = 5
    """Runs that count; the median is shown."""
    threads: int = 0
    """Threads of a CPU; 0 leaves torch's choice."""


def main(options: Options) -> None:
    """Print all tables."""
    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    timer = Timer(torch.device(options.device), options.repeats)
    console = Console()
    console.print(f"torch {torch.__version__}, {machine(timer.device)}, {torch.get_num_threads()} threads")
    model = paper_model(timer.device)
    with timer.autocast():
        console.print(decoder_table(model, options.batches or on(options, (1, 32), (1, 64, 512)), timer))
        console.print(moe_table(timer))
        for batch in options.batches or on(options, (8,), (1, 64, 512)):
            console.print(caption_table(model, batch, timer))
    for batch in options.batches or on(options, (8,), (1, 64)):  # 512 do not fit with their gradients
        console.print(training_table(model, batch, timer))


def on(options: Options, cpu: tuple[int, ...], gpu: tuple[int, ...]) -> tuple[int, ...]:
    """The batch sizes that are told something on that device."""
    return cpu if options.device == "cpu" else gpu


class Timer:
    """Wall times on one device."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def __call__(self, run: Callable[[], object]) -> float:
        """Median seconds of `run`."""
        return statistics.median(self.each(run))

    def each(self, run: Callable[[], object]) -> list[float]:
        """Seconds of every run that counts."""
        return [self._once(run) for _ in range(self.repeats + 1)][1:]

    def pair(self, first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
        """Median seconds of two alternating runs, so that a drifting machine drifts for both."""
        times = [(self._once(first), self._once(second)) for _ in range(self.repeats + 1)][1:]
        return statistics.median(a for a, _ in times), statistics.median(b for _, b in times)

    def autocast(self) -> torch.autocast:
        """bfloat16 on a GPU, nothing on a CPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _once(self, run: Callable[[], object]) -> float:
        self._wait()
        began = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def paper_model(device: torch.device) -> HiSem:
    """The paper's model with random weights, that never says END before `CAPTION` words are out."""
    config = HiSemConfig()
    config = replace(
        config,
        backbone=replace(config.backbone, weights="none"),
        decoder=replace(config.decoder, max_length=CAPTION),
    )
    vocabulary = Vocabulary((*SPECIALS, *(f"w{number}" for number in range(WORDS - len(SPECIALS)))))
    model = HiSem(config, vocabulary).eval().to(device)
    with torch.no_grad():
        model.decoder.output.bias[END] = -1e4
    return model


def decoder_table(model: HiSem, batches: tuple[int, ...], timer: Timer) -> Table:
    """Generation with the cache against recomputing the sentence for every word."""
    table = _table(f"Decoder: {CAPTION} words, greedy", "batch", "cached, ms", "uncached, ms", "ratio")
    length, dim = model.backbone.grid[0] * model.backbone.grid[1], model.backbone.dim
    for batch in batches:
        memory = torch.randn(batch, length, dim, device=timer.device)
        cached, uncached = timer.pair(lambda m=memory: model.generate(m), lambda m=memory: recomputed(model.decoder, m))  # type: ignore[misc]
        table.add_row(str(batch), _ms(cached), _ms(uncached), f"{uncached / cached:.1f} x")
    return table


@torch.no_grad()
def recomputed(decoder: Decoder, memory: Tensor) -> Tensor:
    """Greedy words B T without a cache: the whole sentence passes the decoder for every word."""
    words = torch.full((len(memory), 1), START, device=memory.device)
    for _ in range(CAPTION):
        logits = decoder(words, memory)[:, -1]
        words = torch.cat([words, logits.argmax(-1, keepdim=True)], dim=1)
    return words


def moe_table(timer: Timer) -> Table:
    """Tokens gathered per expert against every expert on every token; forward and backward."""
    table = _table("Mixture of experts: 8 pairs, forward and backward", "experts", "gathered, ms", "dense, ms", "ratio")
    for experts in (8, 32):
        moe = TokenMoE(768, MoEConfig(experts=experts)).to(timer.device)
        features = torch.randn(8, 196, 768, device=timer.device)
        gathered, loop = timer.pair(
            lambda m=moe, x=features: m(x).tokens.sum().backward(),  # type: ignore[misc]
            lambda m=moe, x=features: dense(m, x).sum().backward(),  # type: ignore[misc]
        )
        table.add_row(str(experts), _ms(gathered), _ms(loop), f"{loop / gathered:.1f} x")
    return table


def dense(moe: TokenMoE, features: Tensor) -> Tensor:
    """The same mixture with every expert computed for every token, weighted by 0 where it was not chosen."""
    tokens = features.flatten(0, 1)
    choice = moe.gate(tokens)
    weight = torch.zeros_like(choice.scores).scatter(1, choice.chosen, choice.weight)  # N E
    output = moe.shared(tokens) if moe.shared is not None else torch.zeros_like(tokens)
    for expert, (gate, up, down) in enumerate(zip(moe.experts.gate, moe.experts.up, moe.experts.down, strict=True)):
        hidden = F.silu(F.linear(tokens, gate)) * F.linear(tokens, up)
        output = output + weight[:, expert : expert + 1] * F.linear(hidden, down)
    return output


def caption_table(model: HiSem, batch: int, timer: Timer) -> Table:
    """`caption()` of `batch` pairs: where its time goes and how much of the machine it uses."""
    before, after = images(batch, timer.device)
    route_half(model, before, after)
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN_KERNELS) as counter:
        model.caption(before, after)
    flops = counter.get_total_flops()
    peak, seconds = machine_speed(timer, lambda: model.caption(before, after))
    table = _table(f"caption() of {batch} pairs of {TILE} x {TILE} pixels", "what", "figure")
    table.add_row("captions/s", f"{batch / seconds:.2f}")
    table.add_row("GFLOP a pair", f"{flops / batch / 1e9:.1f}")
    table.add_row("achieved GFLOP/s", f"{flops / seconds / 1e9:.0f}")
    table.add_row("the machine's matrix product, GFLOP/s", f"{peak / 1e9:.0f}")
    table.add_row("achieved / the machine's", f"{flops / seconds / peak:.2f}")
    for part, share in shares(model, before, after, timer).items():
        table.add_row(f"share of {part}", f"{share:.1%}")
    return table


@torch.no_grad()
def shares(model: HiSem, before: Tensor, after: Tensor, timer: Timer) -> dict[str, float]:
    """Shares of the parts in the time of `caption()`, each part timed alone on what it would be given."""
    pixels = torch.cat([before, after])
    prepared = model.preprocess(pixels)
    first, second = model.backbone(prepared).chunk(2)
    memory = model.change(first, second).memory
    parts = {
        "preprocessing": timer(lambda: model.preprocess(pixels)),
        "backbone": timer(lambda: model.backbone(prepared)),
        "change module": timer(lambda: model.change(first, second)),
        "decoder": timer(lambda: model.generate(memory)),
    }
    return {name: seconds / sum(parts.values()) for name, seconds in parts.items()}


def training_table(model: HiSem, batch: int, timer: Timer) -> Table:
    """One optimizer step of the paper's recipe, last four blocks trainable."""
    recipe = preset("paper-levir-cc")
    optimizer = make_optimizer(model, recipe.training)
    before, after = images(batch, torch.device("cpu"))
    word_ids = torch.randint(len(SPECIALS), WORDS, (batch, CAPTION))
    word_ids[:, 0], word_ids[:, -1] = START, END
    changed = torch.arange(batch) % 2 == 0
    one = Batch([str(number) for number in range(batch)], before, after, word_ids, changed, [[""]] * batch)
    with peak_memory(timer.device) as peak:
        seconds = timer(lambda: train_epoch(model, model, [one], optimizer, recipe.training, 5, 1))
    model.eval()
    table = _table(f"A training step of {batch} pairs", "what", "figure")
    table.add_row("pairs/s", f"{batch / seconds:.2f}")
    table.add_row("peak memory", f"{peak[0] / 2**30:.2f} GiB")
    return table


def machine_speed(timer: Timer, run: Callable[[], object]) -> tuple[float, float]:
    """The machine's FLOP/s in a large matrix product, and the median seconds of `run`, taken in turn."""
    dtype = torch.bfloat16 if timer.device.type == "cuda" else torch.float32
    a, b = (torch.randn(MATMUL, MATMUL, device=timer.device, dtype=dtype) for _ in range(2))
    product, seconds = timer.pair(lambda: a @ b, run)
    return 2 * MATMUL**3 / product, seconds


def route_half(model: HiSem, before: Tensor, after: Tensor) -> None:
    """Set the threshold so that half of the pairs take each path."""
    found = model.caption(before, after)
    model.change_threshold = statistics.median_high([one.change_probability or 0.0 for one in found])


def images(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random uint8 pairs B 3 H W."""
    shape = (batch, 3, TILE, TILE)
    before, after = (torch.randint(0, 256, shape, dtype=torch.uint8, device=device) for _ in range(2))
    return before, after


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _grouped_flops(tokens: Any, weights: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * tokens[0] * weights[-2] * weights[-1]  # N rows, each with one expert's matrix


UNKNOWN_KERNELS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._grouped_mm: _grouped_flops,
}
"""What torch's counter does not know of the kernels that we run."""


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """The most bytes in use inside: of the GPU, else of the process (Linux)."""
    peak = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak[0] = torch.cuda.max_memory_allocated()
        return
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    yield peak
    status = Path("/proc/self/status").read_text()
    peak[0] = 1024 * int(status.split("VmHWM:")[1].split()[0])


def machine(device: torch.device) -> str:
    """What the figures were taken on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


if __name__ == "__main__":
    main(tyro.cli(Options))
