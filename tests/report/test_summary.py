"""The two-column summary on the terminal."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from hisem.escapes import UNSAFE
from hisem.report.summary import counts_table, show
from hisem.report.tables import score_table


def lines(title: str, values: dict[str, object], width: int = 60) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(counts_table(title, values))
    return [line.rstrip() for line in capture.get().splitlines() if line.strip()]


def test_what_and_how_much() -> None:
    shown = lines("Shards in /data", {"tiles": 12345, "seconds": 3.14159265, "rate": 1e-7, "model": "hisem"})
    assert shown[0] == "Shards in /data"
    assert [line.split() for line in shown[1:]] == [
        ["tiles", "12345"],
        ["seconds", "3.142"],
        ["rate", "1e-07"],
        ["model", "hisem"],
    ]
    ends = {len(line) for line in shown[1:]}
    assert len(ends) == 1  # values end in one column


def test_brackets_are_text_not_markup() -> None:
    shown = lines("in [red]/data[/red]", {"failed: [Errno 2] x.tif": 3, "[/]": "[b]1[/b]"})
    assert shown[0] == "in [red]/data[/red]"
    assert [line.split("  ")[0].strip() for line in shown[1:]] == ["failed: [Errno 2] x.tif", "[/]"]
    assert shown[2].endswith("[b]1[/b]")


PATH = "/" + "/".join(f"folder{number}" for number in range(20)) + "/scene.tif"
"""Longer than a line of any terminal, and of a label."""


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Have rich take standard output for a terminal of this width, without colors."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": str(columns), "LINES": "25"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("columns", [None, 80, 40])
def test_a_path_is_whole_on_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int | None
) -> None:
    if columns:
        on_terminal(monkeypatch, columns)
    reason = f"failed: {PATH}: no such file; correct the catalogue or restore the file."
    show(counts_table(f"Captions in {PATH}", {"tiles": 97, reason: 3, "catalogue": PATH}), f"page: {PATH}")
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert out.count(PATH) == 4
    assert f"Captions in {PATH}\n" in out
    assert out.endswith(f"\npage: {PATH}\n")


def test_a_score_table_has_its_title_whole(capsys: pytest.CaptureFixture[str]) -> None:
    show(score_table([], f"[red]{PATH} on test"))
    assert f"[red]{PATH} on test\n" in capsys.readouterr().out


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\nb\x1b]0;title\x07\r\x9b31m\u2028\u202egnp"
    show(counts_table(evil, {evil: evil, "tiles": 1}), f"one\ntwo {evil.partition(chr(10))[2]}")
    lines = capsys.readouterr().out.splitlines()
    assert not UNSAFE.search("".join(lines))
    assert lines[0].strip() == r"a\nb\x1b]0;title\x07\r\x9b31m\u2028\u202egnp"
    assert lines[-2:] == ["one", r"two b\x1b]0;title\x07\r\x9b31m\u2028\u202egnp"]


def test_show_prints_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    show(counts_table("Title", {"pairs": 2}))
    printed = capsys.readouterr()
    assert printed.err == ""
    assert [line.split() for line in printed.out.splitlines() if line.strip()] == [["Title"], ["pairs", "2"]]


def test_a_long_reason_leaves_the_numbers_beside_their_labels(capsys: pytest.CaptureFixture[str]) -> None:
    show(counts_table("Title", {"tiles": 2, f"failed: {' '.join(['cannot be read'] * 30)}": 1}))
    printed = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= 100
    assert " ".join(printed.split()).replace(" 1 ", " ").endswith(" ".join(["failed:", *["cannot be read"] * 30]))
