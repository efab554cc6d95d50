"""The chapter Security of the README: every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def rows() -> list[list[str]]:
    """The cells of the chapter's table."""
    chapter = re.search(r"^## Security\n(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert chapter is not None
    lines = [line for line in chapter[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_each_row_names_tests_that_exist() -> None:
    table = rows()
    assert len(table) >= 9
    for threat, deed, shown in table:
        assert threat
        assert deed
        names = re.findall(r"`([\w/]+\.py)::(\w+)`", shown)
        assert names, f"{threat}: no test is named"
        for file, test in names:
            tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{test}"
