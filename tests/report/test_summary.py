"""The two-column summary on the terminal."""

from __future__ import annotations

import pytest
from rich.console import Console

from hisem.report.summary import counts_table, show


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


def test_long_names_are_folded_not_cut() -> None:
    name = "failed: " + "/".join(f"folder{number}" for number in range(20))
    shown = lines("t", {name: 1}, width=50)
    assert "".join(line.removesuffix(" 1").strip() for line in shown[1:]).replace(" ", "") == name.replace(" ", "")


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
