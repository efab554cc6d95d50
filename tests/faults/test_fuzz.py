"""Damaged files of every format: each is read or refused with one of our errors, in bounded time and memory."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.faults.fuzz import harness
from tests.faults.fuzz.harness import Case, cores, fuzz, judged
from tests.faults.fuzz.targets import Target, targets

CASES, SEED = 5000, 20261128


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_damaged_file_gives_another_exception_a_signal_a_hang_or_much_memory(tmp_path: Path) -> None:
    """Failures are kept: replay one with `python -m tests.faults.fuzz --seed SEED --format NAME --output DIR`."""
    result = fuzz(CASES, SEED, cores(), tmp_path / "failures")
    assert sum(sum(counts.values()) for counts in result.counts.values()) >= CASES
    assert [f"{one.case}: {one.verdict}: {one.detail}" for one in result.failures] == []


def test_damage_depends_on_the_seed_alone() -> None:
    target, whole = targets()[0], bytes(range(256)) * 8
    contents = [Case(target.name, 1, number).content(target, whole) for number in range(50)]
    assert contents == [Case(target.name, 1, number).content(target, whole) for number in range(50)]
    assert len(set(contents)) > 45


@pytest.mark.slow
def test_each_kind_of_failure_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of checks that fail in each way, in place of those of the product."""
    monkeypatch.setattr(harness, "SECONDS_PER_CASE", 8.0)
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from tests.faults import test_fuzz\nfrom tests.faults.fuzz import harness\n"
        "harness.targets = test_fuzz.failing_targets\nharness._warm_up = lambda seeds: None\n"
        "harness.serve(Path(sys.argv[1]), sys.stdin, sys.stdout)\n"
    )
    seeds = tmp_path / "seeds"
    for number, target in enumerate(failing_targets()):
        (seeds / str(number)).mkdir(parents=True)
        target.write(seeds / str(number))
    monkeypatch.setattr(harness, "COMMAND", [sys.executable, str(script)])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    worker = harness.Worker(seeds)
    verdicts = {target.name: worker.run(Case(target.name, 0, 0))[0] for target in failing_targets()}
    worker.stop()
    assert verdicts == {name: name for name in ("value", "refused", "exception", "signal", "hang", "memory")}


def failing_targets() -> list[Target]:
    """One target for each verdict, named after it."""
    from hisem.errors import RasterError

    def refuse(_: Path) -> None:
        raise RasterError("no")

    def grow(_: Path) -> None:
        np.ones(5 * 2**28, np.uint8)

    checks = {
        "value": lambda _: None,
        "refused": refuse,
        "exception": lambda _: 1 / 0,
        "signal": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
        "hang": lambda _: time.sleep(60),
        "memory": grow,
    }

    def write(folder: Path) -> None:
        (folder / "a").write_bytes(b"abc")

    return [Target(name, "a", write, check) for name, check in checks.items()]


def test_an_exception_is_placed_in_the_product() -> None:
    from hisem.archive.tiff import directories

    verdict, detail = judged(lambda _: list(directories(lambda *_: b"", None)), Path())
    assert verdict == "exception"
    assert "tiff.py" in detail
