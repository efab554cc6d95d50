"""How the Java process behaves, mostly with a stand-in for `java`, which starts at once."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hisem.errors import DatasetError
from hisem.text.meteor import Meteor, MeteorError
from hisem.text.metrics import CaptionScorer, caption_scores

CANDIDATES, REFERENCES = ["a house", "a road"], [["a house", "a villa"], ["the road"]]

ECHO = """
for line in sys.stdin:
    tiles = line.count("|||")
    print("\\n".join(["0.5"] * tiles + ["0.25"]) if line.startswith("EVAL") else "1 2 3", flush=True)
"""


def children() -> set[int]:
    """Ids of this process's children, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # ended while we looked
        if int(parent) == os.getpid():
            found.add(int(stat.parent.name))
    return found


@pytest.fixture
def no_child_left() -> Iterator[None]:
    if not Path("/proc/self/stat").exists():
        pytest.skip("children are counted in /proc")
    before = children()
    yield
    assert children() <= before


def fake_java(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str) -> None:
    """Make `java` on PATH a Python program."""
    java = folder / "java"
    java.write_text(f"#!{sys.executable}\nimport sys, time\n{textwrap.dedent(program)}")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


pytestmark = pytest.mark.usefixtures("no_child_left")


def test_one_process_serves_all_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(monkeypatch, tmp_path, f"open({str(tmp_path / 'starts')!r}, 'a').write('x')\n{ECHO}")
    with CaptionScorer() as scorer:
        assert [scorer.score(CANDIDATES, REFERENCES).meteor for _ in range(3)] == [0.25] * 3
    assert (tmp_path / "starts").read_text() == "x"


def test_lines_of_the_dialogue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "log"
    fake_java(
        monkeypatch,
        tmp_path,
        ECHO.replace("tiles =", f"open({str(log)!r}, 'a', encoding='utf-8').write(line); tiles ="),
    )
    with Meteor() as meteor:
        meteor.score(["a\r\nb|||c \u2028 b\u00e9ton", ""], [["x", "y ||| z"], ["w"]])
    assert [[field.strip() for field in line.split("|||")] for line in log.read_text("utf-8").split("\n")] == [
        ["SCORE", "x", "y z", "a b c b\u00e9ton"],
        ["SCORE", "w", ""],
        ["EVAL", "1 2 3", "1 2 3"],
        [""],
    ]


def test_without_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with CaptionScorer() as scorer:
        assert scorer.without_meteor == "no `java` on PATH (install a Java runtime, e.g. default-jre-headless)"
    scores = caption_scores(CANDIDATES, REFERENCES)
    assert scores.meteor is None
    assert scores.s_m is None
    assert scores.bleu_1 == pytest.approx(3 / 4)
    assert scores.notes == (
        "METEOR and S*m are unavailable: no `java` on PATH (install a Java runtime, e.g. default-jre-headless)",
    )


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("sys.exit('Error: could not create the Java Virtual Machine')", "Java failed: .*could not create the Java"),
        ("sys.stdin.readline(); print('oops')", "Java failed"),
        ("[print('oops', flush=True) for line in sys.stdin]", "could not convert string to float: 'oops'"),
    ],
)
def test_failing_java_costs_only_meteor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, reason: str
) -> None:
    fake_java(monkeypatch, tmp_path, program)
    with CaptionScorer() as scorer:
        for _ in range(2):  # the second call goes on without METEOR and says the same
            scores = scorer.score(CANDIDATES, REFERENCES)
            assert scores.meteor is None
            assert scores.bleu_1 == pytest.approx(3 / 4)
            (note,) = scores.notes
            assert note.startswith("METEOR and S*m are unavailable: ")
            assert re.search(reason, note)


def test_java_that_cannot_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(monkeypatch, tmp_path, "")
    (tmp_path / "java").write_text("#!/nowhere/interpreter\n")
    with pytest.raises(MeteorError, match="cannot be started"), Meteor():
        pass


def test_hanging_java_is_killed_after_the_timeout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(monkeypatch, tmp_path, "time.sleep(600)")
    start = time.monotonic()
    with Meteor(timeout=0.3) as meteor, pytest.raises(MeteorError, match=r"no answer within 0\.3 s"):
        meteor.score(CANDIDATES, REFERENCES)
    assert time.monotonic() - start < 10


def test_chatty_java_does_not_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(monkeypatch, tmp_path, f"sys.stderr.write('warning ' * 100_000)\n{ECHO}")
    with Meteor(timeout=30) as meteor:
        assert meteor.score(CANDIDATES, REFERENCES) == 0.25


def test_ends_with_the_block_that_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(monkeypatch, tmp_path, ECHO)
    with pytest.raises(KeyboardInterrupt), CaptionScorer():
        raise KeyboardInterrupt


def test_ends_with_scores_that_raise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    fake_java(monkeypatch, tmp_path, f"open({str(starts)!r}, 'a').write('x')\n{ECHO}")

    def scored() -> None:
        with CaptionScorer() as scorer:
            assert scorer.score(CANDIDATES, REFERENCES).meteor == 0.25
            scorer.score(CANDIDATES, [["a"], ["."]])

    with pytest.raises(DatasetError, match="tile 1 has no reference"):
        scored()
    assert starts.read_text() == "x"


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_real_java_is_gone_at_once() -> None:
    before = children()
    with Meteor():
        (java,) = children() - before
        assert b"java" in Path(f"/proc/{java}/cmdline").read_bytes()
    assert not Path(f"/proc/{java}").exists()


def test_is_used_inside_its_block_only() -> None:
    with pytest.raises(RuntimeError, match="outside its `with` block"):
        Meteor().score(CANDIDATES, REFERENCES)
