from __future__ import annotations

import pytest
from rich.console import Console

from hisem.report.tables import HEADERS, score_markdown, score_table
from hisem.text.metrics import CaptionScores
from hisem.text.published_scores import PUBLISHED
from hisem.text.scoring import ScoreRow, change_scores


def row(captioner: str, meteor: float | None, *, changed_only: bool = False, notes: tuple[str, ...] = ()) -> ScoreRow:
    scores = CaptionScores(
        bleu_1=0.866,
        bleu_2=0.7874,
        bleu_3=0.7173,
        bleu_4=0.6582,
        meteor=meteor,
        rouge_l=0.7577,
        cider_d=1.3886,
        s_m=None if meteor is None else 0.8021,
        count=3 if changed_only else 1929,
        notes=notes,
    )
    return ScoreRow(captioner, "changed" if changed_only else "all", scores, change_scores([True] * 2, [True, False]))


ROWS = [row("HiSem", 0.4039), row("[bold]a|b", None, notes=("no `java`",)), row("HiSem", 0.5, changed_only=True)]
CELLS = ["86.60", "78.74", "71.73", "65.82", "40.39", "75.77", "138.86", "80.21", "50.00", "50.00", "100.00"]


@pytest.mark.parametrize("width", [80, 140])
def test_every_cell_is_readable(width: int) -> None:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(score_table(ROWS, title="Test split"))
    text = capture.get()
    lines = [line.split() for line in text.splitlines()]
    assert ["HiSem", *CELLS] in lines
    assert [cell if cell not in ("40.39", "80.21") else "n/a" for cell in CELLS] in [line[-11:] for line in lines]
    assert max(map(len, text.splitlines())) <= width
    assert "\u2026" not in text
    assert "Test split" in text
    assert "no `java`." in text


def test_sections_and_headers() -> None:
    table = score_table(ROWS)
    assert [str(column.header).replace("\n", "") for column in table.columns] == ["captioner", *HEADERS]
    assert [str(cell) for cell in table.columns[0].cells] == [
        "all 1929 tiles",
        "HiSem",
        "[bold]a|b",
        "3 tiles with change",
        "HiSem",
    ]


@pytest.mark.parametrize("width", [80, 140])
def test_published_rows_have_a_section_of_their_own(width: int) -> None:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(score_table(ROWS, published=PUBLISHED["LEVIR-CC"]))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    words = [line.split() for line in lines]
    published = ["85.79", "77.99", "71.04", "65.24", "39.91", "75.24", "136.56", "79.24"]
    assert ["RSCaMa", *published, "n/a", "n/a", "n/a"] in words
    column = [str(cell) for cell in score_table(ROWS, published=PUBLISHED["LEVIR-CC"]).columns[0].cells]
    assert column[5:7] == ["published, LEVIR-CC test, 1,929 tiles, protocol ids", "HiSem"]
    assert len(column) == 6 + len(PUBLISHED["LEVIR-CC"].rows)


def test_markdown() -> None:
    assert score_markdown(ROWS).split("\n") == [
        "**all 1929 tiles**",
        "",
        f"| captioner | {' | '.join(HEADERS)} |",
        f"| --- |{' ---: |' * 11}",
        f"| HiSem | {' | '.join(CELLS)} |",
        f"| [bold]a\\|b | {' | '.join(CELLS).replace('40.39', 'n/a').replace('80.21', 'n/a')} |",
        "",
        "**3 tiles with change**",
        "",
        f"| captioner | {' | '.join(HEADERS)} |",
        f"| --- |{' ---: |' * 11}",
        f"| HiSem | {' | '.join(CELLS).replace('40.39', '50.00')} |",
        "",
        "no `java`.",
        "",
    ]
