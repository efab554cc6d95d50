"""Entry points as a person meets them: help, usage, one line for what went wrong, exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hisem import cli
from hisem.archive.catalogue import read_catalogue
from hisem.errors import ConfigError, HisemError, StorageError

ROOT = Path(__file__).resolve().parents[1]
ENTRY_POINTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("pipelines", "tune")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in path.read_text()
)
EXPERIMENT = {
    "model.backbone",
    "model.backbone.options",
    "model.bdam",
    "model.hasd",
    "model.hasd.moe",
    "model.decoder",
    "training",
}
GROUPS = {"pipelines/train.py": EXPERIMENT, "tune/sweep.py": EXPERIMENT}
"""Groups of options beyond the command's own."""

Result = subprocess.CompletedProcess[str]


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Result]:
    """Runs an entry point in an empty working directory and home, and sees that both stay empty."""

    def run(entry: str, *arguments: str) -> Result:
        here = tmp_path / "elsewhere"
        here.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HISEM", "RAY"))}
        environment |= {"HOME": str(here), "COLUMNS": "120", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(ROOT / entry), *arguments],
            cwd=here,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert os.listdir(here) == []
        return done

    return run


def documented(text: str) -> dict[str, str]:
    """Every option in a help text, with what is said of it beside its values and default."""
    body = "\n".join(line.strip("│ ") for line in text.splitlines() if line.startswith("│"))
    found = {}
    for entry in re.split(r"(?m)^(?:-h, )?(?=--)", body)[1:]:
        names = re.match(r"--[\w.-]+(?:, --[\w.-]+)*", entry)
        assert names is not None
        values = r"\s*(\{[^}]*\}|\[[A-Z .\[\]]+\]|[A-Z]{3,}\b|\|)"
        told = re.sub(rf"^({values})+", "", entry[names.end() :])
        found[names[0].split(",")[0]] = re.sub(r"\((default|required)[^)]*\)", "", told).strip("─ \n")
    return found


def test_an_option_without_help_would_be_seen() -> None:
    sample = """
╭─ options ────────────────────────────────────────╮
│ -h, --help           show this help message      │
│ --told {None}|INT    What it is. (default: None) │
│ --silent {a,b}       (default: a)                │
│ --list [INT [INT ...]]                           │
│                      (required)                  │
│ --flag, --no-flag                                │
│     Below. (default: False)                      │
╰──────────────────────────────────────────────────╯"""
    assert documented(sample) == {
        "--help": "show this help message",
        "--told": "What it is.",
        "--silent": "",
        "--list": "",
        "--flag": "Below.",
    }


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_help_explains_every_option(command: Callable[..., Result], entry: str) -> None:
    shown = command(entry, "--help")
    assert shown.returncode == cli.Exit.DONE
    assert shown.stderr == ""
    first = (ROOT / entry).read_text().split('"""')[1].strip().splitlines()[0]
    assert first in shown.stdout
    groups = set(re.findall(r"(?m)^╭─ (\S+) options", shown.stdout))
    assert groups == GROUPS.get(entry, set())
    options = documented(shown.stdout)
    assert {"--help", "--debug"} < set(options)
    # Keys of a dictionary are explained by their group.
    assert [
        name for name, text in options.items() if not text and not name.startswith("--model.backbone.options.")
    ] == []


def test_all_commands_of_the_house_are_there() -> None:
    names = {"synthesize", "pair", "tile", "train", "evaluate", "caption", "import_checkpoint", "demo"}
    assert {f"pipelines/{name}.py" for name in names} | {"tune/sweep.py"} <= set(ENTRY_POINTS)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("pipelines/tile.py",), "--output"),
        (("pipelines/tile.py", "--output", "x", "--tile-sise", "3"), "--tile-sise"),
        (("pipelines/tile.py", "--output", "x", "--tile-size", "big"), "--tile-size"),
        (("pipelines/pair.py", "--items", "x"), "--output"),
        (("pipelines/pair.py", "--items", "x", "--output", "c.csv", "--bbox", "-1", "0", "1"), "--bbox"),
        (("pipelines/evaluate.py", "--data", "x", "--model", "m", "--split", "all"), "--split"),
        (("pipelines/caption.py", "--catalog"), "--catalog"),
        (("pipelines/import_checkpoint.py", "--vocab", "v", "--output", "x"), "PATH"),
    ],
)
def test_usage_errors_end_with_2(command: Callable[..., Result], arguments: tuple[str, ...], named: str) -> None:
    done = command(*arguments)
    assert done.returncode == cli.Exit.USAGE
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("sources", [(), ("--catalog", "c.csv", "--levir-cc", "d")])
def test_tile_wants_exactly_one_source(command: Callable[..., Result], sources: tuple[str, ...]) -> None:
    done = command("pipelines/tile.py", "--output", "x", *sources)
    assert done.returncode == cli.Exit.USAGE
    assert done.stderr == "error: Give exactly one of --catalog FILE and --levir-cc DIR.\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--catalog", "c.csv", "--overlap", "-1"), "overlap is -1"),
        (("--catalog", "c.csv", "--bands", "4", "3"), "bands is 4 3"),
        (("--catalog", "c.csv", "--scaling", "range"), "give both --scaling range and --scale-range LO HI"),
        (("--levir-cc", "d", "--dry-run"), "leave it out with --levir-cc"),
        (("--levir-cc", "d", "--after-bands", "1", "--nodata", "-9"), "leave out --after-bands, --nodata."),
    ],
)
def test_reading_options_that_cannot_be_meant(
    command: Callable[..., Result], arguments: tuple[str, ...], named: str
) -> None:
    done = command("pipelines/tile.py", "--output", "x", *arguments)
    assert done.returncode == cli.Exit.USAGE
    assert re.fullmatch(rf"error: .*{re.escape(named)}.*\n", done.stderr)


def test_debug_shows_the_traceback(command: Callable[..., Result]) -> None:
    done = command("pipelines/tile.py", "--output", "x", "--debug")
    assert done.returncode == cli.Exit.USAGE
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: Give exactly one")


def test_import_does_not_write_over_what_is_there(command: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    done = command("pipelines/import_checkpoint.py", "c.pth", "--vocab", "v.json", "--output", str(tmp_path))
    assert done.returncode == cli.Exit.USAGE
    assert done.stderr == f"error: --output {tmp_path}: not an empty folder; name a new one.\n"
    assert (tmp_path / "precious").read_text() == "x"


def test_synthesize_keeps_to_one_archive_a_folder(command: Callable[..., Result], tmp_path: Path) -> None:
    folder = tmp_path / "archive"

    def synthesize(seed: int) -> Result:
        small = ("--scenes", "1", "--scene-tiles", "1", "--tile-size", "32", "--workers", "1")
        return command("pipelines/synthesize.py", "--output", str(folder), "--seed", str(seed), *small)

    def content() -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}

    made = synthesize(1)
    assert made.returncode == cli.Exit.DONE, made.stderr
    assert "1 scene pairs" in made.stdout
    first = content()
    assert {"catalogue.parquet", "references.parquet"} < set(first)
    again = synthesize(1)
    assert again.returncode == cli.Exit.DONE
    assert f"{folder} (already there)" in again.stdout
    other = synthesize(2)
    assert other.returncode == cli.Exit.FAILED
    assert other.stdout == ""
    (line,) = other.stderr.splitlines()
    assert re.fullmatch(rf"error: {folder}: already holds .* seed 1 \(asked: 2\); choose another folder .*", line)
    assert content() == first


FOOTPRINTS = """id,time,geometry,rasters,cloud_cover
old,2024-01-01T10:00:00Z,"POLYGON ((0 0, 1 0, 1 1, 0 1, 0 0))",old.tif,
new,2024-06-01T10:00:00Z,"POLYGON ((0 0, 1 0, 1 1, 0 1, 0 0))",new.tif,3
cloudy,2024-06-02T10:00:00Z,"POLYGON ((0 0, 1 0, 1 1, 0 1, 0 0))",cloudy.tif,55
"""


def test_pair_writes_a_catalogue_and_says_what_is_left_out(command: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(FOOTPRINTS)
    limits = (
        "--min-days",
        "1",
        "--max-days",
        "400",
        "--min-overlap",
        "1",
        "--max-cloud",
        "50",
        "--since",
        "2024-02-01",
    )
    done = command("pipelines/pair.py", "--items", f"{tmp_path}/items.csv", "--output", f"{tmp_path}/c.csv", *limits)
    assert done.returncode == cli.Exit.DONE, done.stderr
    first, *table = done.stdout.splitlines()
    assert first == "left out: cloudy: cloud cover 55 % > 50 % [too_cloudy]"
    assert [line.split() for line in table if line.strip()][-6:] == [
        ["acquisitions", "3"],
        ["identical", "copies", "0"],
        ["cloud", "cover", "unknown", "1"],
        ["before", "--since", "1"],
        ["pairs", "1"],
        ["left", "out:", "too_cloudy", "1"],
    ]
    (row,) = read_catalogue(f"{tmp_path}/c.csv").to_pylist()
    assert (row["before"], row["after"]) == ([f"{tmp_path}/old.tif"], [f"{tmp_path}/new.tif"])


def test_pair_ends_with_3_where_items_cannot_be_used(command: Callable[..., Result], tmp_path: Path) -> None:
    broken = [f'x{number:03d},,"POLYGON ((0 0, 1 0, 1 1, 0 0))",x.tif,' for number in range(60)]
    (tmp_path / "items.csv").write_text(FOOTPRINTS + "\n".join(broken))
    done = command("pipelines/pair.py", "--items", f"{tmp_path}/items.csv", "--output", f"{tmp_path}/c.csv")
    assert done.returncode == cli.Exit.FAILED_ROWS
    told = [line for line in done.stdout.splitlines() if line.startswith("left out:")]
    assert told[0] == "left out: x000: it says no time [no_datetime]"
    assert told[50:] == [f"left out: 12 more; all are in {tmp_path}/c.left_out.csv"]
    assert len((tmp_path / "c.left_out.csv").read_text().splitlines()) == 1 + 62


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--since", "soon"), "since is 'soon'"),
        (("--min-overlap", "2"), "--min-overlap is 2.0"),
        (("--bbox", "-10", "-20", "10", "20"), "collections and bbox are what a STAC API is asked for"),
    ],
)
def test_pair_tells_options_that_do_not_fit(
    command: Callable[..., Result], tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    done = command("pipelines/pair.py", "--items", str(tmp_path), "--output", f"{tmp_path}/c.csv", *options)
    assert done.returncode == cli.Exit.USAGE
    assert done.stderr.startswith("error: ")
    assert told in done.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--items", "i", "--catalog", "c.csv"), "Give one of --catalog FILE and --items ITEMS, not both."),
        (
            ("--catalog", "c.csv", "--max-cloud", "9"),
            "give it as well, or leave out --max-cloud.",
        ),
    ],
)
def test_caption_takes_a_catalogue_or_items(
    command: Callable[..., Result], tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    done = command("pipelines/caption.py", "--output", f"{tmp_path}/table", *options)
    assert done.returncode == cli.Exit.USAGE
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert not (tmp_path / "table").exists()


@dataclass(frozen=True)
class Options(cli.Common):
    """Options of a command that is not there."""

    value: int = 3


def ended(main: Callable[[Options], int | None], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.run(main, lambda: cli.parse(Options, "test"))
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (cli.Exit.FAILED_ROWS, 3), (cli.Exit.FAILED, 1)])
def test_exit_code_is_what_main_returns(monkeypatch: pytest.MonkeyPatch, returned: int | None, code: int) -> None:
    assert ended(lambda options: returned, monkeypatch) == code


def test_options_reach_main(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(lambda options: options.value, monkeypatch, "--value", "7") == 7


class RareError(HisemError):
    exit_code = 9


@pytest.mark.parametrize(("kind", "code"), [(StorageError, 1), (ConfigError, 2), (RareError, 9)])
def test_expected_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[HisemError], code: int
) -> None:
    def main(options: Options) -> None:
        raise kind("x.yaml: not valid YAML (while parsing\n    a flow node).")

    assert ended(main, monkeypatch) == code
    assert capsys.readouterr() == ("", "error: x.yaml: not valid YAML (while parsing a flow node).\n")


def test_defects_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(options: Options) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(ZeroDivisionError):
        cli.run(main, lambda: cli.parse(Options, "test"))


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main(options: Options) -> None:
        raise KeyboardInterrupt

    assert ended(main, monkeypatch) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_errors_while_parsing_are_told_alike(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Options:
        raise ConfigError("training.epochs=0: must be 1 or more.")

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda options: None, broken)
    assert caught.value.code == cli.Exit.USAGE
    assert capsys.readouterr().err == "error: training.epochs=0: must be 1 or more.\n"
