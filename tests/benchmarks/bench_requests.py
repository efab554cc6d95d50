"""What captioning an archive asks of an object store: requests and bytes, a night's and each tile's.

    python tests/benchmarks/bench_requests.py --output DIR

Scenes of 4096 x 4096 pixels, stored in blocks as large as the tiles, lie on an S3-compatible server on this machine, as
does the table. The night is run over one pair and over several: what grows with the pairs is the tiles', the rest
the night's. A model that is tiny reads and writes what a large one does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import tyro
from rich.console import Console
from rich.table import Table

from hisem import storage
from hisem.archive.catalogue import read_catalogue
from hisem.archive.synthetic import SyntheticConfig, generate
from hisem.distributed.captioner import CaptionOptions
from hisem.distributed.nightly import caption_archive
from tests.benchmarks.bench_captioning import SMALL, random_model
from tests.conftest import S3Server, make_bucket, serve_s3

TILE, SIDE = 256, 16
"""Pixels of a tile's side, and tiles of a scene's."""


@dataclass(frozen=True)
class Options:
    """Count requests."""

    output: str
    """Folder for the archive and the model, which are kept for a next time."""
    scenes: int = 4
    """Pairs of the larger night, at least 3."""


Counts = Counter[tuple[str, str]]
"""Requests by what they are for, and by method."""


def main(options: Options) -> None:
    """Print the table."""
    folder, model = Path(options.output, f"{options.scenes}-of-{SIDE}"), Path(options.output, "model")
    generate(SyntheticConfig(scenes=options.scenes, tile_size=TILE, scene_tiles=SIDE, nodata_share=0), folder)
    torch.manual_seed(0)
    random_model("demo", SMALL, model)
    with serve_s3() as server:
        bucket = make_bucket(server, "archive")
        storage.upload(folder, f"{bucket}/scenes")
        catalogue = moved(read_catalogue(str(folder / "catalogue.parquet")), folder, f"{bucket}/scenes")
        nights = []
        for count in (1, options.scenes):
            made = CaptionOptions(f"{bucket}/table-{count}", model, "tiny", "1", TILE)
            server.requests()
            night = caption_archive(catalogue.slice(0, count), made).night
            nights.append((sum(night.statuses.values()), *counted(server)))
    Console(width=120).print(shown(*nights))


def moved(catalogue: pa.Table, folder: Path, uri: str) -> pa.Table:
    """The catalogue with the scenes' addresses in the bucket."""
    rows = catalogue.to_pylist()
    for row in rows:
        row |= {date: [path.replace(str(folder), uri) for path in row[date]] for date in ("before", "after")}
    return pa.Table.from_pylist(rows, schema=catalogue.schema)


def counted(server: S3Server) -> tuple[Counts, int]:
    """The requests since the last call, and the bytes that ranges of scenes had."""
    found, read = Counts(), 0
    for request in server.requests():
        kind = purpose(request)
        found[kind, request["method"]] += 1
        if kind == "scenes" and request["range"]:
            first, last = request["range"].removeprefix("bytes=").split("-")
            read += int(last) - int(first) + 1
    return found, read


def purpose(request: dict[str, Any]) -> str:
    """Which part of the system asks."""
    parts = request["path"].split("/")  # "", bucket, table or scenes, part
    if len(parts) > 2 and parts[2] == "scenes":
        return "scenes"
    return parts[3] if len(parts) > 3 else "listing"


def shown(one: tuple[int, Counts, int], many: tuple[int, Counts, int]) -> Table:
    """Requests of both nights, and what each further tile costs."""
    tiles = many[0] - one[0]
    table = Table(title=f"Requests of a night of {one[0]} and of {many[0]} tiles")
    for column in ("for", "method", f"{one[0]} tiles", f"{many[0]} tiles", "each further tile"):
        table.add_column(column, justify="left" if column in ("for", "method") else "right")
    for kind, method in sorted(many[1] | one[1]):
        counts = [night[1][kind, method] for night in (one, many)]
        table.add_row(kind, method, *map(str, counts), f"{(counts[1] - counts[0]) / tiles:.4f}")
    table.add_section()
    totals = [night[1].total() for night in (one, many)]
    table.add_row("all", "", *map(str, totals), f"{(totals[1] - totals[0]) / tiles:.4f}")
    read = [night[2] for night in (one, many)]
    table.add_row("bytes of scenes", "", *(f"{each:,}" for each in read), f"{(read[1] - read[0]) / tiles:,.0f}")
    return table


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
