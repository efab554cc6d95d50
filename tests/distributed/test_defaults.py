"""What is captioned: a catalogue, the pairs of new acquisitions, or the demo archive; without Ray."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from hisem import cli
from hisem.archive.catalogue import read_catalogue
from hisem.archive.pairing import WHOLE_ARCHIVE, PairRequest
from hisem.captions import staging
from hisem.captions.table import read_captions
from hisem.distributed import defaults, nightly
from hisem.distributed.defaults import Source, caption_source
from hisem.errors import BundleError, ConfigError
from hisem.schemas import CATALOGUE
from tests.captions.test_table import OLD as OLD_DIGEST
from tests.captions.test_table import row as captioned_row
from tests.captions.test_table import rows as captioned

HEAD = "id,time,geometry,rasters\n"
OLD = 'old,2024-01-01,"POLYGON ((0 0, 1 0, 1 1, 0 1, 0 0))",old.tif\n'
NEW = 'new,2024-06-01,"POLYGON ((0 0, 1 0, 1 1, 0 1, 0 0))",new.tif\n'
BROKEN = 'broken,,"POLYGON ((0 0, 1 0, 1 1, 0 1, 0 0))",broken.tif\n'


@pytest.fixture
def items(tmp_path: Path) -> Callable[..., str]:
    """Writes a table of footprints."""

    def write(*rows: str) -> str:
        path = tmp_path / "items.csv"
        path.write_text(HEAD + "".join(rows))
        return str(path)

    return write


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_catalogue_that_is_named(tmp_path: Path) -> None:
    assert caption_source("c.csv", None, WHOLE_ARCHIVE, str(tmp_path)) == Source("c.csv", 256, 0)
    assert files(tmp_path) == []


def test_without_one_the_demo_archive_has_its_own_tile_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(defaults, "default_catalogue", lambda: "demo.parquet")
    assert caption_source(None, None, WHOLE_ARCHIVE, str(tmp_path)) == Source("demo.parquet", 64, 0)


def test_pairs_are_kept_and_told(items: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    source = caption_source(None, items(OLD, NEW, BROKEN), PairRequest(since="2024-05-01"), f"{tmp_path}/out")
    assert (source.tile_size, source.unusable) == (256, 1)
    assert source.catalogue is not None
    (row,) = read_catalogue(source.catalogue).to_pylist()
    assert (row["before"], row["after"]) == ([f"{tmp_path}/old.tif"], [f"{tmp_path}/new.tif"])
    folder, _, name = source.catalogue.rpartition("/")
    assert folder == f"{tmp_path}/out/_catalogues"
    time = datetime.strptime(name, "%Y%m%dT%H%M%SZ.parquet").replace(tzinfo=UTC)
    assert before <= time <= datetime.now(UTC)
    left_out = name.replace(".parquet", ".left_out.csv")
    assert files(tmp_path / "out") == sorted([f"_catalogues/{name}", f"_catalogues/{left_out}"])
    told = capsys.readouterr().out
    assert f"Pairs of {tmp_path}/items.csv" in told
    assert re.search(rf"catalogue +{re.escape(source.catalogue)} *\n", told)
    assert re.search(r"before --since +1 *\n *pairs +1 *\n *left out: no_datetime +1 *\n", told)
    assert "no new pairs" not in told


def test_a_dry_run_leaves_the_output_alone(
    items: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = caption_source(None, items(OLD, NEW), WHOLE_ARCHIVE, f"{tmp_path}/out", f"{tmp_path}/scratch")
    assert source.catalogue is not None
    assert source.catalogue.startswith(f"{tmp_path}/scratch/")
    assert len(read_catalogue(source.catalogue)) == 1
    assert not (tmp_path / "out").exists()
    assert "scratch" not in capsys.readouterr().out  # it is gone when this is read


def test_no_pairs_are_no_error(items: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = PairRequest(since="2024-06-02")
    assert caption_source(None, items(OLD, NEW), request, f"{tmp_path}/out") == Source(None)
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == "no new pairs: 2 acquisitions, 2 of them before --since, 0 left out"


@pytest.mark.parametrize(
    ("catalogue", "items", "request_", "told"),
    [
        ("c.csv", "i.csv", WHOLE_ARCHIVE, "Give one of --catalog FILE and --items ITEMS, not both"),
        ("c.csv", None, PairRequest(since="yesterday"), "give it as well, or leave out --since."),
        (None, None, PairRequest(max_cloud=3, mask_asset="m"), "leave out --mask-asset, --max-cloud."),
        (None, "i.csv", PairRequest(since="soon"), "since is 'soon'"),
    ],
)
def test_what_does_not_go_together(
    tmp_path: Path, catalogue: str | None, items: str | None, request_: PairRequest, told: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        caption_source(catalogue, items, request_, str(tmp_path))
    assert files(tmp_path) == []


@pytest.fixture
def caption(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command in this process."""
    path = Path(__file__).parents[2] / "pipelines" / "caption.py"
    spec = importlib.util.spec_from_file_location("caption_command", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.run(module.main, lambda: cli.parse(module.Options, "", arguments))
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


@pytest.mark.parametrize("dry", [False, True])
def test_the_command_captions_the_pairs(
    caption: Callable[..., int], items: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dry: bool
) -> None:
    seen: list[tuple[pa.Table, int]] = []

    def caption_job(catalogue: str, *given: Any, tile_size: int, **settings: Any) -> None:
        seen.append((read_catalogue(catalogue), tile_size))
        raise BundleError("far enough")

    monkeypatch.setattr(nightly, "caption_job", caption_job)
    options = ("--model", "m", "--output", f"{tmp_path}/out", *(("--dry-run",) if dry else ()))
    assert caption("--items", items(OLD, NEW), "--max-days", "200", *options) == cli.Exit.FAILED
    ((catalogue, tile_size),) = seen
    assert (catalogue.column("after").to_pylist(), tile_size) == ([[f"{tmp_path}/new.tif"]], 256)
    assert (tmp_path / "out").exists() is not dry


@pytest.mark.parametrize("dry", [False, True])
def test_without_pairs_the_command_publishes_what_an_interrupted_run_has_left(
    caption: Callable[..., int],
    items: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    dry: bool,
) -> None:
    monkeypatch.setenv("HISEM_STORAGE", str(tmp_path / "home"))
    out = str(tmp_path / "out")
    job = staging.new_job(CATALOGUE.empty_table(), "yesterday.parquet", "nothing", "hisem", "1", OLD_DIGEST)
    staging.begin(out, job)
    staging.Stage(out, job)(captioned(captioned_row("p/0"), captioned_row("p/1", status="failed")))
    flags = ("--items", items(OLD), "--output", out)
    assert caption(*flags, *(("--dry-run",) if dry else ())) == (cli.Exit.DONE if dry else cli.Exit.FAILED_ROWS)
    assert read_captions(out).column("tile_id").to_pylist() == ([] if dry else ["p/0", "p/1"])
    assert ("interrupted" in capsys.readouterr().out) is not dry
    assert (staging.open_job(out) == job) is dry


@pytest.mark.parametrize(("rows", "code"), [((OLD,), cli.Exit.DONE), ((OLD, BROKEN), cli.Exit.FAILED_ROWS)])
def test_the_command_ends_well_without_pairs(
    caption: Callable[..., int], items: Callable[..., str], tmp_path: Path, rows: tuple[str, ...], code: int
) -> None:
    assert caption("--items", items(*rows), "--output", f"{tmp_path}/out", "--dry-run") == code
    assert not (tmp_path / "out").exists()
