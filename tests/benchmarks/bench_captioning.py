"""What captioning an archive costs beside the bare model, what memory it takes, and what a kill loses.

    python tests/benchmarks/bench_captioning.py --output DIR

Rate and kill: the paper's model with random weights that says 20 words of every tile, on synthetic scenes of
256-pixel tiles without nodata, about half of them told changed. The job reads GeoTIFF and writes Parquet with its
defaults: a captioner with one thread for each CPU, page on. The bare model gets the same tiles in memory, before and
after the job. A captioner works on a block of up to 128 tiles at a time, so that captioners are idle where there are
fewer blocks than CPUs: the table says how many there are.

Memory: a tiny model on 32-pixel tiles, each number of tiles in a process of its own, watched with all its offspring.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import tyro
from rich.console import Console
from rich.table import Table

from hisem import storage, tracking
from hisem.archive.blocks import number_blocks
from hisem.archive.catalogue import read_catalogue
from hisem.archive.index import index_with_lattices
from hisem.archive.synthetic import SyntheticConfig, generate
from hisem.captions import staging
from hisem.captions.options import GREEDY
from hisem.captions.table import read_captions
from hisem.distributed.captioner import CaptionOptions, images, read_pixels
from hisem.distributed.nightly import caption_archive
from hisem.distributed.session import cluster
from hisem.model.hisem import HiSem
from hisem.text.vocabulary import END, SPECIALS, Vocabulary
from hisem.training.batches import image_tensor
from hisem.training.presets import PresetName, preset

CAPTION = Path(__file__).parents[2] / "pipelines" / "caption.py"
WORDS, SAID = 468, 20
"""Vocabulary of LEVIR-CC, and words of a caption."""
TILE, SMALL_TILE = 256, 32
SAMPLE = 0.2
"""Seconds between two looks at memory."""
SMALL: dict[str, Any] = {
    "backbone": {"image_size": [SMALL_TILE, SMALL_TILE], "options": {"channels": [8, 16, 24, 32], "stem_width": 8}},
    "bdam": {"heads": 2},
    "hasd": {"hidden": 32, "moe": {"hidden": 16}},
    "decoder": {"heads": 2, "max_length": SAID},
}

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Options:
    """Measure captioning."""

    output: str
    """Folder for archives, models and tables; archives are kept for a next time."""
    parts: tuple[Literal["rate", "memory", "kill"], ...] = ("rate", "memory", "kill")
    """What to measure."""
    tiles: int = 256
    """Tiles of rate and kill, at least; rounded up to scenes of 8 x 8, below 128 to two scenes that are smaller."""
    preset: Literal["paper-levir-cc", "small", "demo"] = "paper-levir-cc"
    """Model of rate and kill; a smaller one is for trying this script out."""
    memory_tiles: tuple[int, ...] = (1_000, 10_000)
    """Tiles of memory, rounded up to scenes of 10 x 10."""


def main(options: Options) -> None:
    """Print the tables that are asked for."""
    measures = {"rate": rate, "memory": memory, "kill": kill}
    for part in options.parts:
        Console(width=120).print(measures[part](options))


def rate(options: Options) -> Table:
    """Tiles/s of the job and of the bare model, on all CPUs."""
    catalogue_path, bundle = full_size(options)
    catalogue = read_catalogue(catalogue_path)
    before, after, blocks = in_memory(catalogue)
    count, threads = len(before), os.cpu_count() or 1
    bare = [bare_rate(bundle, before, after, threads)]
    output = fresh(options, "rate")
    began = datetime.now(UTC)
    with cluster():
        started = datetime.now(UTC)
        night = caption_archive(catalogue, CaptionOptions(output, bundle, options.preset, "1", TILE)).night
        ended = datetime.now(UTC)
    left = datetime.now(UTC)
    assert night.statuses["ok"] == count, "not every tile got a caption"
    bare.append(bare_rate(bundle, before, after, threads))
    apart = processes_rate(bundle, before, after, threads)
    stamps = sorted(read_captions(output).column("captioned_at").to_pylist())
    whole, steady, model = count / seconds(began, left), steady_rate(stamps), statistics.mean(bare)
    table = Table(
        title=f"{options.preset}: {count} tiles in {blocks} block(s), {night.changed} changed, {threads} CPUs"
    )
    for column in ("what", "figure", "/ bare model"):
        table.add_column(column, justify="left" if column == "what" else "right")
    runs = ", ".join(f"{each:.3f}" for each in bare)
    table.add_row(f"bare model, {threads} threads, batches of {GREEDY.batch}: {runs}", f"{model:.3f} tiles/s", "1")
    name = f"bare model, {threads} processes of one thread"
    table.add_row(name, f"{apart:.3f} tiles/s", f"{apart / model:.3f}")
    table.add_row("job, Ray's start and end included", f"{whole:.3f} tiles/s", f"{whole / model:.3f}")
    name, called = "job, the call in a Ray that is there", count / seconds(started, ended)
    table.add_row(name, f"{called:.3f} tiles/s", f"{called / model:.3f}")
    shown = ("all at once", "") if steady is None else (f"{steady:.3f} tiles/s", f"{steady / model:.3f}")
    table.add_row("job, from the first rows put aside to the last", *shown)
    for name, since, until in (
        ("Ray starts", began, started),
        ("call to the first rows put aside: index, actors, batches", started, stamps[0]),
        ("first to last rows", stamps[0], stamps[-1]),
        ("last rows to the end of the call: publishing, page", stamps[-1], ended),
        ("Ray ends", ended, left),
    ):
        table.add_row(f"  {name}", f"{seconds(since, until):.1f} s")
    return table


def in_memory(catalogue: pa.Table) -> tuple[Images, Images, int]:
    """Both dates of all tiles, N H W 3, and the blocks that the job cuts them into."""
    index = pa.concat_tables(index_with_lattices(pair, TILE) for pair in catalogue.to_pylist())
    tiles = pa.concat_tables(read_pixels(index, TILE))
    before, after = (images(tiles.column(name), TILE) for name in ("before_pixels", "after_pixels"))
    return before, after, int(number_blocks(index).max()) + 1


def bare_rate(bundle: Path, before: Images, after: Images, threads: int, start: Barrier | None = None) -> float:
    """Tiles/s of the model on tiles in memory, doing what a captioner asks of it; two tiles before do not count."""
    torch.set_num_threads(threads)
    model = HiSem.from_pretrained(bundle)
    model.caption(image_tensor(before[:2]), image_tensor(after[:2]), explain=True)
    if start:
        start.wait()
    began = time.perf_counter()
    for first in range(0, len(before), GREEDY.batch):
        some = slice(first, first + GREEDY.batch)
        model.caption(image_tensor(before[some]), image_tensor(after[some]), explain=True)
    return len(before) / (time.perf_counter() - began)


def processes_rate(bundle: Path, before: Images, after: Images, count: int) -> float:
    """Tiles/s together of processes with one thread each, which share the tiles and begin at once."""
    spawn = multiprocessing.get_context("spawn")
    start, shares = spawn.Barrier(count), zip(np.array_split(before, count), np.array_split(after, count), strict=True)
    with spawn.Pool(count, initializer=_at, initargs=(start,)) as pool:
        rates = pool.starmap(_share, [(bundle, *share) for share in shares], chunksize=1)
    return sum(rates)


def _at(start: Barrier) -> None:
    _starts.append(start)


def _share(bundle: Path, before: Images, after: Images) -> float:
    return bare_rate(bundle, before, after, 1, _starts[0])


_starts: list[Barrier] = []
"""A barrier reaches a process of a pool only as it begins."""


def steady_rate(stamps: list[datetime]) -> float | None:
    """Tiles/s from the first rows that were put aside to the last; None where all were put aside at once.

    `stamps` are the times of all rows, in order.
    """
    later = [each for each in stamps if each > stamps[0]]
    return len(later) / seconds(stamps[0], stamps[-1]) if later else None


def memory(options: Options) -> Table:
    """Peaks of the driver and of the largest captioner."""
    folder = Path(options.output, "small")
    scenes = [-(-count // 100) for count in options.memory_tiles]
    config = SyntheticConfig(scenes=max(3, *scenes), tile_size=SMALL_TILE, scene_tiles=10)
    generate(config, folder / f"archive-{config.scenes}")
    catalogue = read_catalogue(str(folder / f"archive-{config.scenes}" / "catalogue.parquet"))
    torch.manual_seed(0)
    bundle = folder / "model"
    random_model("demo", SMALL, bundle)
    table = Table(title=f"Peak memory, tiles of {SMALL_TILE}, {os.cpu_count()} captioners, MiB")
    for column in ("tiles", "seconds", "driver", "of it its own", "largest captioner", "of it its own"):
        table.add_column(column, justify="right")
    for count in scenes:
        some = catalogue.slice(0, count)
        made = CaptionOptions(fresh(options, f"memory-{count}"), bundle, "small", "1", SMALL_TILE)
        driver = multiprocessing.get_context("spawn").Process(target=caption_archive, args=(some, made))
        began = time.perf_counter()
        driver.start()
        peaks = watch(driver)
        took = time.perf_counter() - began
        assert driver.exitcode == 0, "the job failed"
        rows = len(read_captions(made.output))
        assert rows == 100 * count
        figures = (f"{each / 2**10:.0f}" for each in (*peaks["driver"], *peaks["captioner"]))
        table.add_row(str(rows), f"{took:.0f}", *figures)
    table.caption = "Its own: without files and Ray's object store, which count in every process that looks into them."
    return table


def watch(driver: Any) -> dict[str, tuple[int, int]]:
    """Peaks in KiB while `driver` runs, of it and of the largest captioner: resident, and anonymous."""
    peaks = {"driver": (0, 0), "captioner": (0, 0)}
    while driver.is_alive():
        for pid in offspring(driver.pid):
            with suppress(OSError, IndexError):
                name = "driver" if pid == driver.pid else "captioner"
                if name == "captioner" and b"MapWorker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    continue
                status = Path(f"/proc/{pid}/status").read_text()
                found = (int(status.split(f"{field}:")[1].split()[0]) for field in ("VmHWM", "RssAnon"))
                peaks[name] = tuple(map(max, peaks[name], found))  # type: ignore[assignment]
        time.sleep(SAMPLE)
    driver.join()
    return peaks


def offspring(pid: int) -> list[int]:
    """A process and all that come from it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def kill(options: Options) -> Table:
    """Seconds that a kill half-way and a second run cost over a run undisturbed."""
    catalogue, bundle = full_size(options)
    store = tracking.sqlite_uri(options.output)
    tracking.start_run(store, "store made").end()  # which takes seconds, once
    undisturbed, output = (fresh(options, name) for name in ("undisturbed", "killed"))
    began = time.perf_counter()
    subprocess.run(command(catalogue, bundle, undisturbed, store), check=True, capture_output=True)
    alone = time.perf_counter() - began

    again = command(catalogue, bundle, output, store)
    began = time.perf_counter()
    log = Path(options.output, "killed.log")
    with log.open("wb") as out:
        driver = subprocess.Popen(again, stdout=out, stderr=out, start_new_session=True)
    time.sleep(alone / 2)
    assert driver.poll() is None, f"the job ended before it was killed: see {log}"
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    killed = time.perf_counter() - began
    job = staging.open_job(output)
    staged = len(staging.staged_rows(output, job)) if job else 0
    began = time.perf_counter()
    subprocess.run(again, check=True, capture_output=True)
    rerun = time.perf_counter() - began

    tables = [sorted(read_captions(each).column("tile_id").to_pylist()) for each in (undisturbed, output)]
    assert tables[0] == tables[1], "the tables differ"
    table = Table(title=f"a kill of the job's process group, {options.preset}, {len(tables[0])} tiles")
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_row("undisturbed", f"{alone:.1f} s")
    table.add_row("until the kill", f"{killed:.1f} s")
    table.add_row("tiles put aside by then", str(staged))
    table.add_row("second run", f"{rerun:.1f} s")
    table.add_row("lost", f"{killed + rerun - alone:.1f} s")
    return table


def command(catalogue: str, bundle: Path, output: str, store: str) -> list[str]:
    """The command that captions."""
    words = [sys.executable, str(CAPTION), "--catalog", catalogue, "--model", str(bundle), "--output", output]
    return [*words, "--tile-size", str(TILE), "--tracking", store]


def full_size(options: Options) -> tuple[str, Path]:
    """Catalogue file, and the bundle of a model that says of half of the first tiles that they changed."""
    side = 8 if options.tiles >= 128 else max(1, int(np.ceil((options.tiles / 2) ** 0.5)))
    scenes = max(2, -(-options.tiles // side**2))
    folder = Path(options.output, "full", f"{scenes}-of-{side}")
    generate(SyntheticConfig(scenes=scenes, tile_size=TILE, scene_tiles=side, nodata_share=0), folder)
    path = str(folder / "catalogue.parquet")
    bundle = folder / options.preset
    if not bundle.exists():
        torch.manual_seed(0)
        torch.set_num_threads(os.cpu_count() or 1)
        rows = index_with_lattices(read_catalogue(path).to_pylist()[0], TILE).slice(0, 16)
        random_model(options.preset, {"decoder": {"max_length": SAID}}, bundle, rows)
    return path, bundle


def random_model(name: PresetName, over: dict[str, Any], bundle: Path, rows: pa.Table | None = None) -> None:
    """Save a model that says `SAID` words of every tile; the threshold is put between those of `rows`, where given."""
    vocabulary = Vocabulary((*SPECIALS, *(f"w{number}" for number in range(WORDS - len(SPECIALS)))))
    model = HiSem(preset(name, {"model": over}).model, vocabulary, pretrained=False).eval()
    with torch.no_grad():
        model.decoder.output.bias[END] = -1e4
    if rows is not None:
        tiles = pa.concat_tables(read_pixels(rows, TILE))
        before, after = (image_tensor(images(tiles.column(date), TILE)) for date in ("before_pixels", "after_pixels"))
        found = model.caption(before, after)
        model.change_threshold = statistics.median(each.change_probability or 0.0 for each in found)
    model.save_pretrained(bundle)


def fresh(options: Options, name: str) -> str:
    """A table's folder where nothing is."""
    return storage.join(storage.absolute(options.output), "tables", f"{name}-{time.time_ns()}")


def seconds(since: datetime, until: datetime) -> float:
    """Between two moments."""
    return (until - since).total_seconds()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
