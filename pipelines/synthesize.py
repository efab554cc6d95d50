"""The synthetic archive: scene pairs, catalogue and references, rendered from a seed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

from hisem import cli
from hisem.archive.synthetic import Summary, SyntheticConfig, generate
from hisem.ranges import Processes, Range, Seed
from hisem.report.archive_sheet import write_archive_sheet
from hisem.report.summary import print_lines


@dataclass(frozen=True, kw_only=True)
class Options(cli.Common):
    """Options of this command."""

    output: str
    """Folder or URI for the archive."""
    scenes: Annotated[int, Range(1, 100_000)] = SyntheticConfig.scenes
    """Scene pairs."""
    seed: Seed = SyntheticConfig.seed
    """The same seed gives the same bytes."""
    tile_size: Annotated[int, Range(32, 512)] = SyntheticConfig.tile_size
    """Pixels a tile's side; a tile shows 64 m of ground."""
    scene_tiles: Annotated[int, Range(1, 64)] = SyntheticConfig.scene_tiles
    """Tiles a scene's side."""
    workers: Processes | None = None
    """Processes; all CPUs if not given."""


def main(options: Options) -> int:
    """Generate the archive and say what it holds."""
    config = SyntheticConfig(
        scenes=options.scenes, seed=options.seed, tile_size=options.tile_size, scene_tiles=options.scene_tiles
    )
    summary = generate(config, options.output, workers=options.workers, progress=_show)
    print_lines(_told(summary))
    print_lines(f"contact sheet: {write_archive_sheet(summary.output, config.tile_size)}")
    return cli.Exit.DONE


def _show(done: int, total: int) -> None:
    if sys.stderr.isatty() or done == total or done % 10 == 0:
        print(f"\rscenes: {done}/{total}", end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)


def _told(summary: Summary) -> str:
    splits = ", ".join(f"{count} {split}" for split, count in summary.splits.items())
    kinds = "\n".join(f"  {count:6d}  {kind}" for kind, count in summary.kinds.items())
    return (
        f"{summary.output}{' (already there)' if summary.existing else ''}\n"
        f"{summary.scenes} scene pairs ({splits}), {summary.tiles} tiles, {summary.changed} changed:\n{kinds}"
    )


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Options, __doc__ or ""))
