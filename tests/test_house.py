"""The house: who may import whom. Imports are read off the sources, wherever in a file they stand."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hisem"
ENTRY_FOLDERS = ("pipelines", "tune")
CLUSTER = "cluster"
"""Its files start Ray as a command, and need no more of the house than how commands are made."""
ENTRY_LINES = 80

FOUNDATIONS = {
    "",
    "errors",
    "escapes",
    "schemas",
    "object_store",
    "storage",
    "conditional",
    "object_files",
    "writable",
    "config",
    "ranges",
    "cli",
    "logs",
    "provenance",
}
"""Files beside the rooms that everything may use; "" is the package itself."""

MAY_IMPORT: dict[str, set[str]] = {
    "": {"model"},  # the public name HiSem, on demand
    "errors": set(),
    "escapes": set(),
    "schemas": set(),
    "object_store": set(),
    "storage": set(),
    "writable": set(),
    "conditional": set(),
    "object_files": set(),
    "config": set(),
    "ranges": set(),
    "cli": set(),
    "logs": set(),
    "provenance": set(),
    "tracking": set(),
    "archive": set(),
    "text": set(),
    "captions": set(),
    "model": {"text"},
    "report": {"archive", "text"},
    "training": {"model", "text"},
    "distributed": {"archive", "text", "model", "captions", "report", "training", "tracking"},
    "cluster": set(),
    "entry": {"archive", "text", "model", "captions", "report", "training", "tracking", "distributed"},
}
"""Which rooms a room may import, beside itself and the foundations."""

WITHOUT_TORCH = {
    "",
    "errors",
    "escapes",
    "schemas",
    "object_store",
    "storage",
    "writable",
    "conditional",
    "object_files",
    "config",
    "ranges",
    "cli",
    "logs",
    "provenance",
    "tracking",
    "archive",
    "text",
    "captions",
    "cluster",
}
TORCH = {"torch", "timm", "torchvision"}
ONLY_IN = {"ray": {"distributed"}, "mlflow": {"tracking"}}


def imported(source: str, package: str) -> set[str]:
    """Dotted names that `source` imports, `from a import b` as `a.b`; relative ones taken from `package`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def violations(source: str, room: str, package: str) -> list[str]:
    """What `source`, a file of `room` in the package `package`, imports and may not."""
    found = []
    for name in sorted(imported(source, package)):
        top, _, rest = name.partition(".")
        if top == "hisem":
            other = rest.partition(".")[0]
            other = other if other in MAY_IMPORT else ""  # a name of the package itself
            if other != room and other not in FOUNDATIONS | MAY_IMPORT[room]:
                found.append(f"{name}: {room} may not import {other}")
        elif top in (*ENTRY_FOLDERS, CLUSTER, "tests"):
            found.append(f"{name}: nothing imports entry points or tests")
        elif top in TORCH and room in WITHOUT_TORCH:
            found.append(f"{name}: {room} does without torch")
        elif room not in ONLY_IN.get(top, {room}):
            found.append(f"{name}: {top} is imported in {', '.join(ONLY_IN[top])} alone")
    return found


def sources() -> list[tuple[Path, str]]:
    """Every file of the house with its room."""
    files = []
    for path in sorted(PACKAGE.rglob("*.py")):
        first = path.relative_to(PACKAGE).parts[0]
        files.append((path, "" if first == "__init__.py" else first.removesuffix(".py")))
    for folder in (*ENTRY_FOLDERS, CLUSTER):
        room = CLUSTER if folder == CLUSTER else "entry"
        files += [(path, room) for path in sorted((ROOT / folder).rglob("*.py"))]
    return files


@pytest.mark.parametrize(("path", "room"), sources(), ids=lambda part: str(part).removeprefix(f"{ROOT}/"))
def test_imports_follow_the_arrow(path: Path, room: str) -> None:
    assert room in MAY_IMPORT, f"{room} is a room without rules: name them in MAY_IMPORT"
    package = ".".join(path.relative_to(ROOT).parent.parts)
    assert violations(path.read_text(encoding="utf-8"), room, package) == []


def test_all_rooms_are_there() -> None:
    assert {room for _, room in sources()} == set(MAY_IMPORT)


def test_entry_points_are_short() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path, room in sources() if room == "entry"}
    assert len(lengths) >= 7
    assert {name: lines for name, lines in lengths.items() if lines > ENTRY_LINES} == {}


@pytest.mark.parametrize(
    ("room", "source", "complaint"),
    [
        ("archive", "import torch", "torch"),
        ("archive", "from hisem.text.vocabulary import NULL", "archive may not import text"),
        ("text", "import torch.nn.functional as F", "torch"),
        ("captions", "import ray.data", "ray"),
        ("captions", "import timm", "torch"),
        ("model", "from ray import train", "ray"),
        ("model", "import mlflow", "mlflow"),
        ("model", "from hisem import storage, tracking", "model may not import tracking"),
        ("report", "def draw():\n    import ray", "ray"),
        ("report", "from hisem.model.hisem import HiSem", "report may not import model"),
        ("training", "try:\n    import ray\nexcept ImportError:\n    pass", "ray"),
        ("training", "from hisem.distributed.session import cluster", "training may not import distributed"),
        ("training", "from hisem import tracking", "training may not import tracking"),
        ("training", "from ..distributed import session", "training may not import distributed"),
        ("distributed", "import mlflow.entities", "mlflow"),
        ("distributed", "from pipelines.tile import main", "entry points"),
        ("schemas", "from hisem.captions.table import publish", "schemas may not import captions"),
        ("errors", "from .model import hisem", "errors may not import model"),
        ("storage", "import torch", "torch"),
        ("entry", "import ray", "ray"),
        ("cluster", "import ray", "ray"),
    ],
)
def test_checker_sees_a_planted_violation(room: str, source: str, complaint: str) -> None:
    package = {"errors": "hisem", "entry": "pipelines"}.get(room, f"hisem.{room}")
    (found,) = violations(source, room, package)
    assert complaint in found


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("model", "import torch\nfrom hisem.text.vocabulary import NULL\nfrom hisem.errors import ConfigError"),
        ("training", "from hisem.model import hisem\nfrom . import recipe\nfrom hisem import HiSem, __version__"),
        ("distributed", "import ray\nimport torch\nfrom hisem import tracking"),
        ("tracking", "def f():\n    import mlflow"),
        ("archive", "import rasterio, numpy\nfrom hisem.archive import png"),
        ("captions", "text = 'import torch'"),
        ("entry", "from hisem import cli, storage\nfrom hisem.distributed.session import cluster"),
    ],
)
def test_checker_lets_the_rest_pass(room: str, source: str) -> None:
    assert violations(source, room, f"hisem.{room}") == []
