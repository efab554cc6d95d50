"""The formats: small whole files of each, and how the product reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import rasterio
import shapely
import yaml
from affine import Affine
from PIL import Image
from rasterio.enums import Resampling

from tests.faults.fuzz.mutations import (
    Mutation,
    csv_cell,
    header_line,
    json_value,
    parquet_page,
    png_chunk,
    tiff_entry,
)

SIDE = 64
TIME = datetime(2024, 6, 1, tzinfo=UTC)

Check = Callable[[Path], object]


@dataclass(frozen=True)
class Target:
    """One format: `file` is what is damaged of what `write` puts into a folder, and `check` reads the folder."""

    name: str
    file: str
    write: Callable[[Path], None]
    check: Check
    fields: tuple[Mutation, ...] = ()


def targets() -> list[Target]:
    """All formats."""
    return [*rasters(), *tables(), *documents(), *models()]


# Rasters: a pair of the damaged one and itself, indexed and read as tiles, fine and from overviews.


def read_pair(folder: Path, name: str) -> None:
    from hisem.archive.grid import Window
    from hisem.archive.index import index_pair
    from hisem.archive.options import ReadOptions
    from hisem.archive.reader import pair_reader
    from hisem.errors import RasterError

    pair = {"pair_id": "p", "before": [str(folder / name)], "after": [str(folder / name)]}
    failed = 0
    for options in (ReadOptions(), ReadOptions(resolution=20.0, scaling="percentiles", bands=("1",))):
        try:
            row = index_pair(pair, SIDE, options).slice(0, 1).to_pylist()[0]
            with pair_reader(pair, SIDE, options) as reader:
                reader.read(Window(row["row_off"], row["col_off"], row["height"], row["width"]))
        except RasterError:
            failed += 1
    if failed == 2:
        raise RasterError("neither way")


def raster(
    name: str, *, file: str | None = None, fields: tuple[Mutation, ...] = (), beside: bool = False, **profile: Any
) -> Target:
    mask = profile.pop("mask", False)

    def write(folder: Path) -> None:
        y, x = np.mgrid[0:SIDE, 0:SIDE]
        pixels = np.stack([100 + 60 * np.sin(x / 9 + k) + 40 * np.cos(y / 7 - k) for k in range(3)]).astype("uint8")
        common = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": 3, "dtype": "uint8"}
        common |= {"crs": "EPSG:32633", "transform": Affine(10, 0, 500_000, 0, -10, 4_000_000)}
        path = folder / name
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=not beside, TIFF_USE_OVR=beside):
            with rasterio.open(path, "w", **common | profile) as written:
                written.write(pixels)
                if mask:
                    written.write_mask(np.where((x + y) % 31 < 5, 0, 255).astype("uint8"))
                    written.update_tags(NOTE="seeing is believing")
            if mask:
                with rasterio.open(path, "r+") as written:
                    written.build_overviews([2, 4], Resampling.nearest)

    return Target(file or name, file or name, write, lambda folder: read_pair(folder, name), fields)


def rasters() -> list[Target]:
    tiff = (tiff_entry,)
    blocks: dict[str, Any] = {"tiled": True, "blockxsize": 32, "blockysize": 32}
    found = [
        raster("striped.tif", fields=tiff, mask=True),
        raster("tiled-deflate.tif", fields=tiff, mask=True, compress="deflate", predictor=2, **blocks),
        raster("lzw.tif", fields=tiff, compress="lzw", interleave="pixel"),
        raster("zstd-big.tif", fields=tiff, compress="zstd", BIGTIFF="YES", mask=True),
        raster("lerc.tif", fields=tiff, compress="lerc"),
        raster("webp.tif", fields=tiff, compress="webp", interleave="pixel"),
        raster("jpeg.tif", fields=tiff, compress="jpeg", photometric="ycbcr", interleave="pixel", mask=True),
        raster("big-endian.tif", fields=tiff, compress="packbits", ENDIANNESS="BIG"),
        raster("cog.tif", fields=tiff, driver="COG", blocksize=128, compress="deflate", overviews="FORCE_USE_EXISTING"),
        raster("beside.tif", file="beside.tif.ovr", fields=tiff, beside=True, mask=True, compress="deflate"),
        raster("masked.tif", file="masked.tif.msk", fields=tiff, beside=True, mask=True),
        raster("envi.img", driver="ENVI"),
        raster("header.img", file="header.hdr", fields=(header_line,), driver="ENVI"),
        raster("picture.png", fields=(png_chunk,), driver="PNG", worldfile="YES"),
        raster("world.png", file="world.wld", fields=(header_line,), driver="PNG", worldfile="YES"),
        raster("picture.jpg", driver="JPEG", worldfile="YES"),
        raster("picture.jp2", driver="JP2OpenJPEG"),
        raster("metadata.png", file="metadata.png.aux.xml", driver="PNG"),
    ]
    plain = rasters_with_exif()
    return [*found, plain]


def rasters_with_exif() -> Target:
    def write(folder: Path) -> None:
        exif = Image.Exif()
        exif[274], exif[270] = 1, "a picture"
        y, x = np.mgrid[0:SIDE, 0:SIDE].astype("uint8")
        Image.fromarray(np.stack([x, y, x + y], -1)).save(folder / "exif.jpg", exif=exif)

    return Target("exif.jpg", "exif.jpg", write, lambda folder: read_pair(folder, "exif.jpg"))


# Tables.


def parquet(name: str, table: Callable[[], pa.Table], check: Check, inside: str = "") -> Target:
    def write(folder: Path) -> None:
        (folder / inside).mkdir(parents=True, exist_ok=True)
        pq.write_table(table(), folder / inside / "table.parquet")

    return Target(name, str(Path(inside, "table.parquet")), write, check, (parquet_page, parquet_page))


def csv(name: str, table: Callable[[], pa.Table], check: Check) -> Target:
    def write(folder: Path) -> None:
        pacsv.write_csv(table(), folder / "table.csv")

    return Target(name, "table.csv", write, check, (csv_cell, csv_cell))


def pairs(lists: bool) -> pa.Table:
    def path(name: str) -> Any:
        return [name] if lists else name

    rows = [
        {
            "pair_id": f"p{n}",
            "before": path(f"/d/b{n}.tif"),
            "after": path(f"/d/a{n}.tif"),
            "before_time": "2023-05-01T10:00:00Z",
            "after_time": "2024-05-01T10:00:00Z",
            "split": "train",
        }
        for n in range(5)
    ]
    return pa.Table.from_pylist(rows)


def footprints(text: bool) -> pa.Table:
    rows = [
        {
            "id": f"i{n}",
            "time": "2023-05-01T10:00:00Z",
            "geometry": shapely.box(n, 0, n + 1, 1).wkt if text else shapely.box(n, 0, n + 1, 1).wkb,
            "rasters": f"/d/{n}.tif" if text else [f"/d/{n}.tif"],
            "collection": "c",
            "cloud_cover": 3.5,
        }
        for n in range(5)
    ]
    return pa.Table.from_pylist(rows)


def references() -> pa.Table:
    from hisem.schemas import REFERENCES

    rows = [
        {"pair_id": f"p{n}", "row_off": 0, "col_off": 64 * n, "references": ["a road appears"] * 5, "changed": True}
        for n in range(6)
    ]
    return pa.Table.from_pylist(rows, schema=REFERENCES)


def tile_rows() -> list[dict[str, Any]]:
    return [
        {
            "tile_id": f"p{n}/0-0-32",
            "pair_id": f"p{n}",
            "before": [f"/d/b{n}.tif"],
            "after": [f"/d/a{n}.tif"],
            "before_time": TIME,
            "after_time": TIME,
            "split": ("train", "val", "test")[n % 3],
            "row_off": 0,
            "col_off": 0,
            "height": 32,
            "width": 32,
            "crs": "EPSG:32633",
            "transform": [10.0, 0.0, 500_000.0, 0.0, -10.0, 4_000_000.0],
            "geometry": shapely.box(15, 36, 15.1, 36.1).wkb,
            "status": "ok",
            "before_valid": 1.0,
            "after_valid": 1.0,
        }
        for n in range(6)
    ]


def shards() -> pa.Table:
    from hisem.archive import png
    from hisem.schemas import SHARD

    image = png.encode(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    more = {"before_image": image, "after_image": image}
    rows = [
        row | more | {"references": ["a road"], "changed": number % 2 == 0} for number, row in enumerate(tile_rows())
    ]
    return pa.Table.from_pylist(rows, schema=SHARD)


def captions() -> pa.Table:
    from hisem.schemas import STAGED

    model = {"model_name": "m", "model_version": "1", "model_digest": "d" * 64, "captioned_at": TIME}
    rows = [
        row | model | {"caption": "a road appears", "changed": True, "change_probability": 0.9} for row in tile_rows()
    ]
    return pa.Table.from_pylist(rows, schema=STAGED)


def read_shards(folder: Path) -> None:
    from hisem import storage
    from hisem.distributed.archive import summarise
    from hisem.distributed.dataset import decode, read_splits

    summarise(str(folder))
    splits = read_splits(str(folder), ("train", "val", "test"))
    table = storage.read_parquet(str(folder / "table.parquet"))
    for split in splits.values():
        split.fingerprint()
    decode(table, 32)


def read_published(folder: Path) -> None:
    from hisem.captions.table import known_rows, read_captions

    known_rows(str(folder), "d" * 64)
    read_captions(str(folder))


def published() -> pa.Table:
    from hisem.schemas import CAPTION

    return captions().select(CAPTION.names)


def staged_job() -> dict[str, Any]:
    return {
        "run": "2024-06-01T000000-abcdef",
        "started": "2024-06-01T00:00:00+00:00",
        "redo": "nothing",
        "catalogue": "/d/c.parquet",
        "fingerprint": "f" * 64,
        "model_name": "m",
        "model_version": "1",
        "model_digest": "d" * 64,
        "how": "None",
    }


def read_staged(folder: Path) -> None:
    from hisem.captions.staging import open_job, staged_rows

    job = open_job(str(folder))
    if job is not None:
        staged_rows(str(folder), job)


def write_staged(folder: Path) -> None:
    job = staged_job()
    (folder / "_staging" / job["run"]).mkdir(parents=True, exist_ok=True)
    (folder / "_staging" / "job.json").write_text(json.dumps(job))
    pq.write_table(captions(), folder / "_staging" / job["run"] / "000000-00000000.parquet")


def tables() -> list[Target]:
    def catalogue(suffix: str) -> Check:
        def read(folder: Path) -> object:
            from hisem.archive.catalogue import read_catalogue

            return read_catalogue(str(folder / f"table.{suffix}"))

        return read

    def acquisitions(suffix: str) -> Check:
        def read(folder: Path) -> object:
            from hisem.archive.pairing import WHOLE_ARCHIVE, pair_archive

            return pair_archive(str(folder / f"table.{suffix}"), str(folder / "out.parquet"), WHOLE_ARCHIVE, TIME)

        return read

    def described(folder: Path) -> object:
        from hisem.archive.references import read_references

        return read_references(str(folder / "table.parquet"))

    staged = f"_staging/{staged_job()['run']}/000000-00000000.parquet"
    return [
        csv("catalog.csv", lambda: pairs(lists=False), catalogue("csv")),
        parquet("catalog.parquet", lambda: pairs(lists=True), catalogue("parquet")),
        csv("footprints.csv", lambda: footprints(text=True), acquisitions("csv")),
        parquet("footprints.parquet", lambda: footprints(text=False), acquisitions("parquet")),
        parquet("references.parquet", references, described),
        parquet("shards.parquet", shards, read_shards),
        parquet("captions.parquet", published, read_published, "captions/year=2024"),
        Target("staged.parquet", staged, write_staged, read_staged, (parquet_page,)),
        Target("job.json", "_staging/job.json", write_staged, read_staged, (json_value, json_value, json_value)),
    ]


# JSON and YAML.


def document(name: str, file: str, content: Any, check: Check, more: Callable[[Path], None] | None = None) -> Target:
    def write(folder: Path) -> None:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(content) if file.endswith("json") else yaml.safe_dump(content))
        if more:
            more(folder)

    return Target(name, file, write, check, (json_value,) * 3 if file.endswith("json") else ())


def item() -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "i1",
        "collection": "c",
        "links": [],
        "geometry": json.loads(shapely.to_geojson(shapely.box(15, 36, 16, 37))),
        "bbox": [15, 36, 16, 37],
        "properties": {"datetime": "2023-05-01T10:00:00Z", "eo:cloud_cover": 3.0},
        "assets": {"visual": {"href": "./a.tif", "roles": ["visual"], "type": "image/tiff"}},
    }


def write_images(folder: Path) -> None:
    for date in ("A", "B"):
        path = folder / "images" / "train" / date
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path / "train_1.png")


PROGRESS = "checkpoints/0001-000007-0123abcd/progress.json"


def write_checkpoints(folder: Path) -> None:
    from hisem.training.checkpoints import Progress

    entries = [
        {"name": "0001-000000", "epoch": 1, "step": 0, "score": 0.5},
        {"name": "0001-000007-0123abcd", "epoch": 1, "step": 7, "score": None},
    ]
    (folder / "checkpoints.json").write_text(json.dumps(entries))
    (folder / PROGRESS).parent.mkdir(parents=True, exist_ok=True)
    (folder / PROGRESS).write_text(json.dumps(asdict(Progress(1, history=[{"epoch": 1.0, "loss": 1.0}]))))


def documents() -> list[Target]:
    def stac(folder: Path) -> object:
        from hisem.archive.pairing import WHOLE_ARCHIVE, pair_archive

        return pair_archive(str(folder / "items"), str(folder / "out.parquet"), WHOLE_ARCHIVE, TIME)

    def levir(folder: Path) -> object:
        from hisem.archive.levir_cc import read_levir_cc

        return read_levir_cc(str(folder))

    def settings(folder: Path) -> object:
        from hisem.captions.settings import refuse_other_settings

        refuse_other_settings(str(folder), {"overlap": 3})
        return None

    def run(folder: Path) -> object:
        from hisem.distributed.run_file import RunFile

        return RunFile.read(str(folder))

    def sweep(folder: Path) -> object:
        from hisem.distributed.sweep_file import SweepFile

        return SweepFile.open(str(folder), {"base": {"epochs": 1}})

    def checkpoints(folder: Path) -> object:
        from hisem.training.checkpoints import Checkpoints

        known = Checkpoints(str(folder), 2)
        return known.latest(), known.best(), known.history()

    def night(folder: Path) -> object:
        from hisem.captions.night import find_night

        return find_night(str(folder), "n")

    def config(folder: Path) -> object:
        from hisem.config import from_dict, read_yaml
        from hisem.training.recipe import Experiment

        return from_dict(Experiment, read_yaml(str(folder / "config.yaml")), "config.yaml")

    def manifest(folder: Path) -> object:
        from hisem.distributed.archive import read_benchmark

        return read_benchmark(str(folder))

    image = {"filename": "train_1.png", "split": "train", "changeflag": 1, "sentences": [{"raw": " a road ."}] * 5}
    trained = {
        "experiment": {"training": {"epochs": 1}},
        "data": {"train": "f" * 64},
        "init": None,
        "run_id": "r",
        "finished": False,
    }
    return [
        document("stac.json", "items/item.json", item(), stac),
        document("levir-cc.json", "LevirCCcaptions.json", {"images": [image]}, levir, write_images),
        document("settings.json", "_settings.json", {"overlap": 3}, settings),
        document("run.json", "hisem_run.json", trained, run),
        document("sweep.json", "hisem_sweep.json", {"asked": {"base": {"epochs": 1}}, "run_id": "r"}, sweep),
        Target("checkpoints.json", "checkpoints.json", write_checkpoints, checkpoints, (json_value,) * 3),
        Target("progress.json", PROGRESS, write_checkpoints, checkpoints, (json_value,) * 3),
        document("manifest.json", "_index/manifest.json", {"tile_size": 256, "benchmark": "LEVIR-CC"}, manifest),
        document("night.json", "_nights/n.json", summary(), night),
        document("config.yaml", "config.yaml", {"training": {"epochs": 3}, "model": {"bdam": {"layers": 1}}}, config),
        document(
            "config.yaml as JSON", "config.json", {"training": {"epochs": 3}, "model": {"bdam": {"layers": 1}}}, as_json
        ),
    ]


def summary() -> dict[str, Any]:
    times = {"started": "2024-06-01T00:00:00+00:00", "ended": "2024-06-01T00:10:00+00:00", "seconds": 600.0}
    model = {"model_name": "m", "model_version": "1", "model_digest": "d" * 64}
    counts = {"pairs": 1, "tiles": 4, "already": 0, "changed": 1, "logprobs": 3, "other_errors": 0}
    means = {"share_changed": 0.25, "mean_logprob": -1.0, "std_logprob": 0.5, "tiles_per_second": 0.1}
    lists = {"statuses": {"ok": 3, "skipped": 0, "failed": 1}, "captions": {"a road": 3}}
    failure = {"reason": "no such file", "count": 1, "example": "/d/a.tif: no such file"}
    names = {"run": "n", "status": "finished", "catalogue": "/d/c.parquet", "output": "/d/table"}
    return names | times | model | counts | means | lists | {"errors": [failure]}


def as_json(folder: Path) -> object:
    from hisem.config import from_dict, read_yaml
    from hisem.training.recipe import Experiment

    return from_dict(Experiment, read_yaml(str(folder / "config.json")), "config.json")


# Models.


def write_bundle(folder: Path) -> None:
    import torch

    from hisem.config import from_dict
    from hisem.model.hisem import HiSem, HiSemConfig
    from hisem.text.vocabulary import SPECIALS, Vocabulary
    from tests.model.conftest import TINY

    torch.manual_seed(0)
    model = HiSem(from_dict(HiSemConfig, TINY, "fuzz"), Vocabulary((*SPECIALS, *(f"w{n}" for n in range(7)))))
    model.eval().save_pretrained(folder / "bundle", {})


def read_bundle(folder: Path) -> None:
    from hisem.model.hisem import HiSem

    HiSem.from_pretrained(folder / "bundle")


def write_checkpoint(folder: Path) -> None:
    official = Path(__file__).parents[2] / "data" / "official_layout_tiny.pth"
    (folder / "official.pth").write_bytes(official.read_bytes())


def read_official(folder: Path) -> None:
    from hisem.model.published import read_checkpoint

    read_checkpoint(folder / "official.pth")


def models() -> list[Target]:
    fields = {"model.safetensors": (), "config.json": (json_value,) * 3}
    fields |= {"vocabulary.json": (json_value,) * 3, "preprocessing.json": (json_value,) * 3}
    bundles = [
        Target(f"bundle {name}", f"bundle/{name}", write_bundle, read_bundle, some) for name, some in fields.items()
    ]
    return [*bundles, Target("checkpoint.pth", "official.pth", write_checkpoint, read_official)]
