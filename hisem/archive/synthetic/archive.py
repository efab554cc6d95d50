"""The synthetic archive on disk: rasters, catalogue, references with the truth, contact sheet."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hisem import schemas, storage
from hisem.archive.synthetic import raster
from hisem.archive.synthetic.conditions import Conditions, levels
from hisem.archive.synthetic.config import SyntheticConfig
from hisem.archive.synthetic.language import references
from hisem.archive.synthetic.scene import compose
from hisem.archive.synthetic.truth import Truth
from hisem.errors import StorageError
from hisem.writable import require_writable

REVISION = 1
"""Raised whenever the same configuration would give other bytes."""
SETTINGS_KEY = b"hisem.synthetic"
MARGIN_METRES = 12.0
"""Ground painted around a scene, so that trees and shadows cross its border."""

BEFORE_TIMES = (
    datetime(2019, 6, 14, 10, 20, tzinfo=UTC),
    datetime(2020, 4, 21, 10, 25, tzinfo=UTC),
    datetime(2020, 8, 9, 10, 15, tzinfo=UTC),
)
AFTER_TIMES = (
    datetime(2022, 6, 18, 10, 20, tzinfo=UTC),
    datetime(2023, 8, 25, 10, 10, tzinfo=UTC),
    datetime(2023, 10, 11, 10, 30, tzinfo=UTC),
    datetime(2024, 6, 3, 10, 20, tzinfo=UTC),
)

CUT_DATES = ((True, False), (False, True), (True, True))
"""On which dates a scene with nodata lacks a corner."""

TRUTH_FIELDS = [
    pa.field("kinds", pa.list_(pa.string())),
    pa.field("places", pa.list_(pa.string())),
    pa.field("counts", pa.list_(pa.int32())),
    pa.field("true_shift_x", pa.float32()),
    pa.field("true_shift_y", pa.float32()),
]
"""What the references table holds beyond its schema: kinds, places and counts of a tile's changes in the
order of its sentences; the displacement in pixels of the after scene's content, x to the right, y down."""

Progress = Callable[[int, int], None]
"""Called with the number of finished scenes and of all scenes."""


@dataclass(frozen=True)
class Summary:
    """What an archive holds. `kinds` counts changes; `existing` says that it was there already."""

    output: str
    scenes: int
    tiles: int
    changed: int
    kinds: dict[str, int]
    splits: dict[str, int]
    existing: bool


def generate(
    config: SyntheticConfig, output: str | Path, *, workers: int | None = None, progress: Progress | None = None
) -> Summary:
    """Write the archive of `config` to folder (or URI) `output` with `workers` processes (all CPUs if None).

    The result does not depend on the number of workers. `catalogue.parquet` comes last: where it is, the
    archive is whole, and the same configuration writes nothing. Raises `StorageError` where `output`
    holds an archive of another configuration or one that was moved.
    """
    root = storage.absolute(output)
    catalogue_path, references_path = storage.join(root, "catalogue.parquet"), storage.join(root, "references.parquet")
    if storage.exists(catalogue_path):
        _check_same(config, root)
        return _summary(root, storage.read_parquet(catalogue_path), storage.read_parquet(references_path), True)

    require_writable(root)
    pairs, tiles = [], []
    for pair, rows in _rendered(config, root, workers or os.cpu_count() or 1, progress):
        pairs.append(pair)
        tiles += rows
    catalogue = schemas.conform(pa.Table.from_pylist(pairs, schema=schemas.CATALOGUE), schemas.CATALOGUE, root)
    table = pa.Table.from_pylist(tiles, schema=pa.schema([*schemas.REFERENCES, *TRUTH_FIELDS]))
    table = schemas.conform(table, schemas.REFERENCES, root, extra=True)
    storage.write_parquet(table, references_path)
    storage.write_parquet(catalogue.replace_schema_metadata({SETTINGS_KEY: _settings(config)}), catalogue_path)
    return _summary(root, catalogue, table, False)


def make_scene(config: SyntheticConfig, index: int, root: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Render and write both rasters of scene `index`; its catalogue row and its references rows."""
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, index]))
    frame = raster.Frame.of(index, config.scenes, config.scene_size, config.pixel)
    crs, margin = _delivery(config, index, frame)
    times = BEFORE_TIMES[rng.integers(len(BEFORE_TIMES))], AFTER_TIMES[rng.integers(len(AFTER_TIMES))]
    taken = [Conditions.draw(rng, time, shifted=time is times[1]) for time in times]
    scene = compose(rng, config.scene_tiles, config.tile_size, margin)
    before, after = (
        levels(conditions.expose(scene.paint(after=bool(date), sun=conditions.sun), rng))
        for date, conditions in enumerate(taken)
    )

    kept = slice(margin, margin + config.scene_size)
    delivered = [(before[kept, kept], raster.HOME_CRS, frame.transform())]
    if crs == raster.HOME_CRS:
        delivered.append((after[kept, kept], crs, frame.transform()))
    else:
        warped, transform = raster.warp(after, frame, margin, crs)
        delivered.append((warped, crs, transform))
    cut = CUT_DATES[rng.integers(len(CUT_DATES))] if index in config.nodata_scenes() else (False, False)
    name = f"scene_{index:04d}"
    paths = []
    for date, (picture, its_crs, transform), cornered in zip(("before", "after"), delivered, cut, strict=True):
        final = raster.cut_corner(picture, rng) if cornered else picture
        paths.append(storage.join(root, date, f"{name}.tif"))
        storage.write_bytes(paths[-1], raster.encode(final, its_crs, transform, nodata=cornered))

    pair = {
        "pair_id": name,
        "before": paths[:1],
        "after": paths[1:],
        "before_time": times[0],
        "after_time": times[1],
        "split": config.splits()[index],
    }
    rows = [
        {"pair_id": name, "row_off": row * config.tile_size, "col_off": column * config.tile_size}
        | _described([change.truth for change in changes], taken[1].shift, rng)
        for (row, column), changes in scene.changes.items()
    ]
    return pair, rows


def _delivery(config: SyntheticConfig, index: int, frame: raster.Frame) -> tuple[str, int]:
    """The CRS of the after scene, and the pixels to paint around the frame so that it covers the frame."""
    least = int(np.ceil(MARGIN_METRES / config.pixel))
    two_crs = config.two_crs_scenes()
    if index not in two_crs:
        return raster.HOME_CRS, least
    crs = raster.OTHER_CRS[two_crs.index(index) % len(raster.OTHER_CRS)]
    return crs, max(least, frame.covering(crs)[1])


def _described(truths: list[Truth], shift: tuple[float, float], rng: np.random.Generator) -> dict[str, Any]:
    """The references of one tile and its truth."""
    return {
        "references": references(truths, rng),
        "changed": bool(truths),
        "kinds": [truth.kind.value for truth in truths],
        "places": [truth.place.value for truth in truths],
        "counts": [truth.count for truth in truths],
        "true_shift_x": shift[0],
        "true_shift_y": shift[1],
    }


def _rendered(
    config: SyntheticConfig, root: str, workers: int, progress: Progress | None
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The rows of all scenes in order, made by `workers` processes, or in this one if it is a single one."""
    done = 0
    if workers == 1:
        for index in range(config.scenes):
            yield make_scene(config, index, root)
            if progress:
                progress(index + 1, config.scenes)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, config.scenes), mp_context=context) as pool:
        futures = [pool.submit(make_scene, config, index, root) for index in range(config.scenes)]
        try:
            for future in as_completed(futures):
                future.result()
                done += 1
                if progress:
                    progress(done, config.scenes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        yield from (future.result() for future in futures)


def is_synthetic_catalogue(uri: str) -> bool:
    """True if the catalogue at `uri` is that of a synthetic archive, as its Parquet file records."""
    if not uri.endswith(".parquet"):
        return False
    return SETTINGS_KEY in (storage.read_parquet(uri, []).schema.metadata or {})


def _settings(config: SyntheticConfig) -> str:
    return json.dumps(asdict(config) | {"revision": REVISION}, sort_keys=True)


def _check_same(config: SyntheticConfig, root: str) -> None:
    """Raise unless the archive in `root` is whole, of this configuration and where it was written."""
    catalogue = storage.read_parquet(storage.join(root, "catalogue.parquet"))
    found = (catalogue.schema.metadata or {}).get(SETTINGS_KEY)
    if found is None:
        raise StorageError(f"{root}: holds a catalogue that is not of a synthetic archive; choose another folder.")
    try:
        theirs = json.loads(found)
    except ValueError as error:
        raise StorageError(
            f"{root}: the settings in its catalogue are damaged ({error}); delete the folder."
        ) from error
    if not isinstance(theirs, dict) or not len(catalogue):
        raise StorageError(f"{root}: its catalogue is damaged; delete the folder and generate it again.")
    ours = json.loads(_settings(config))
    differing = [f"{key} {theirs.get(key)} (asked: {ours[key]})" for key in ours if theirs.get(key) != ours[key]]
    if differing:
        raise StorageError(
            f"{root}: already holds a synthetic archive with {', '.join(differing)}; "
            "choose another folder or delete this one."
        )
    first = catalogue.column("before")[0].as_py()[0]
    if not first.startswith(root + "/"):
        raise StorageError(f"{root}: was moved, its catalogue names {first}; delete the folder and generate it again.")


def _summary(root: str, catalogue: pa.Table, table: pa.Table, existing: bool) -> Summary:
    kinds = Counter(kind for row in table.column("kinds").to_pylist() for kind in row)
    return Summary(
        output=root,
        scenes=catalogue.num_rows,
        tiles=table.num_rows,
        changed=sum(table.column("changed").to_pylist()),
        kinds=dict(sorted(kinds.items())),
        splits=dict(Counter(catalogue.column("split").to_pylist())),
        existing=existing,
    )
