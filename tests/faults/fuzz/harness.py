"""Cases are run in worker processes, which are replaced when one dies, hangs or has grown."""

from __future__ import annotations

import json
import os
import random
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.faults.fuzz.mutations import mutate
from tests.faults.fuzz.targets import Target, targets

SECONDS_PER_CASE = 60.0
"""A header may claim a million tiles; 250,000 take 5 to 6 s of CPU to index."""
SECONDS_TO_START = 120.0
MAX_GROWTH = 2**30
"""Bytes by which one case may grow the resident memory of its process."""
ADDRESS_SPACE = 24 * 2**30
"""Bytes beyond which allocations fail, so that a case that asks for all memory does not get it."""
CASES_PER_TURN = 20
"""Cases of one format in a row, so that workers share the formats evenly."""

COMMAND = [sys.executable, "-m", "tests.faults.fuzz", "--worker"]

FINE = ("value", "refused")
BAD = ("exception", "signal", "hang", "memory")


@dataclass(frozen=True)
class Case:
    """The damaged file `number` of a format: the same bytes for the same seed."""

    target: str
    seed: int
    number: int

    def content(self, target: Target, whole: bytes) -> bytes:
        rng = random.Random(f"{self.seed}/{self.target}/{self.number}")
        return mutate(whole, target.fields, rng)


@dataclass(frozen=True)
class Failure:
    """A case that neither gave a value nor was refused."""

    case: Case
    verdict: str
    detail: str


@dataclass
class Result:
    """Verdicts by format, and the failures."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def table(self) -> str:
        """Rows of Markdown: how many cases of each format had which verdict."""
        heads = ("cases", *FINE, *BAD)
        lines = [f"| format | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
        total: Counter[str] = Counter()
        for name, counts in [*sorted(self.counts.items()), ("all", total)]:
            cells = [sum(counts.values()), *(counts[verdict] for verdict in heads[1:])]
            lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
            total += counts
        return "\n".join(lines)


def write_seeds(folder: Path) -> None:
    """The whole files of each format, each in a folder of its own."""
    for number, target in enumerate(targets()):
        (folder / str(number)).mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.write(folder / str(number))


class Worker:
    """A process that reads cases from its input and answers each with a verdict."""

    def __init__(self, seeds: Path) -> None:
        self.seeds = seeds
        self.process: subprocess.Popen[str] | None = None

    def run(self, case: Case) -> tuple[str, str]:
        """The verdict on a case, and what it is based on."""
        if self.process is None:
            self._start()
        process = self.process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([case.target, case.seed, case.number]) + "\n")
            process.stdin.flush()
            line = self._line(SECONDS_PER_CASE)
        except BrokenPipeError:
            line = ""
        if line:
            verdict, detail, growth = json.loads(line)
            if growth > MAX_GROWTH:
                self.stop()
                return "memory", f"{growth >> 20} MiB; {detail}"
            return verdict, detail
        hung = line is None
        self.stop()
        return ("hang", f"over {SECONDS_PER_CASE:g} s") if hung else ("signal", f"exit code {process.returncode}")

    def _start(self) -> None:
        command = [*COMMAND, str(self.seeds)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if self._line(SECONDS_TO_START) != "ready\n":
            raise RuntimeError(f"a worker of the fuzz test does not start: {' '.join(command)}")

    def _line(self, seconds: float) -> str | None:
        """The next line of the worker's output, empty where it has ended, None where it takes too long."""
        assert self.process is not None
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            return self.process.stdout.readline() if selector.select(seconds) else None

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def fuzz(cases: int, seed: int, workers: int, output: Path | None = None, names: tuple[str, ...] = ()) -> Result:
    """Run so many cases, the same number of each format; failures and their files are kept in `output`."""
    chosen = [target for target in targets() if not names or target.name in names]
    each = -(-cases // len(chosen))
    result = Result({target.name: Counter() for target in chosen})
    turns = [
        [Case(target.name, seed, number) for number in range(first, min(first + CASES_PER_TURN, each))]
        for first in range(0, each, CASES_PER_TURN)
        for target in chosen
    ]
    with tempfile.TemporaryDirectory() as temporary:
        seeds = Path(temporary)
        write_seeds(seeds)
        queue = iter(turns)

        def work(_: int) -> None:
            worker = Worker(seeds)
            for turn in _shared(queue):
                for case in turn:
                    verdict, detail = worker.run(case)
                    result.counts[case.target][verdict] += 1
                    if verdict in BAD:
                        result.failures.append(Failure(case, verdict, detail))
            worker.stop()

        with ThreadPoolExecutor(workers) as threads:
            list(threads.map(work, range(workers)))
        if output is not None:
            _keep(result.failures, seeds, output)
    return result


def _shared(queue: Iterator[list[Case]]) -> Iterator[list[Case]]:
    """The turns that no other thread has taken; `next` of a list's iterator is atomic."""
    while (turn := next(queue, None)) is not None:
        yield turn


def _keep(failures: list[Failure], seeds: Path, output: Path) -> None:
    """Write each failure's folder with the damaged file, and what was seen."""
    by_name = {target.name: (number, target) for number, target in enumerate(targets())}
    for failure in failures:
        number, target = by_name[failure.case.target]
        folder = output / f"{target.name.replace(' ', '-')}-{failure.case.seed}-{failure.case.number}"
        shutil.copytree(seeds / str(number), folder, dirs_exist_ok=True)
        whole = (folder / target.file).read_bytes()
        (folder / target.file).write_bytes(failure.case.content(target, whole))
        (folder / "failure.txt").write_text(f"{failure.verdict}: {failure.detail}\n", errors="backslashreplace")


def serve(seeds: Path, cases: IO[str], verdicts: IO[str]) -> None:
    """Be a worker: one verdict for each case, until the input ends."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    known = {target.name: (number, target) for number, target in enumerate(targets())}
    with tempfile.TemporaryDirectory() as temporary, redirect_stdout(sys.stderr):
        own = Path(temporary) / "seeds"
        shutil.copytree(seeds, own)
        _warm_up(own)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        verdicts.write("ready\n")
        verdicts.flush()
        for line in cases:
            case = Case(*json.loads(line))
            number, target = known[case.target]
            file = own / str(number) / target.file
            whole = file.read_bytes()
            file.write_bytes(case.content(target, whole))
            with _growth() as growth:
                verdict, detail = judged(target.check, own / str(number))
            file.write_bytes(whole)
            verdicts.write(json.dumps([verdict, detail, growth()]) + "\n")
            verdicts.flush()


def judged(check: Callable[[Path], object], folder: Path) -> tuple[str, str]:
    """What a check of a folder comes to: a value, one of our errors, or another exception and where it was raised."""
    from hisem.errors import HisemError

    try:
        check(folder)
    except HisemError as error:
        return "refused", str(error)[:300]
    except Exception as error:  # noqa: BLE001 - what it looks for
        frames = traceback.extract_tb(error.__traceback__)
        ours = next((frame for frame in reversed(frames) if "/hisem/" in frame.filename), frames[-1])
        place = f"{Path(ours.filename).name}:{ours.lineno}"
        return "exception", f"{type(error).__name__} at {place}: {str(error)[:200]}"
    return "value", ""


def _warm_up(seeds: Path) -> None:
    """Read all whole files once, so that what is imported and kept is not counted as growth."""
    for number, target in enumerate(targets()):
        verdict, detail = judged(target.check, seeds / str(number))
        if verdict != "value":
            raise RuntimeError(f"{target.name}: the whole file is not read ({verdict}: {detail})")


@contextmanager
def _growth() -> Iterator[Callable[[], int]]:
    """Yields a function that returns by how many bytes resident memory has been above what it was at the start."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start = _status("VmRSS")
    peak = [0]
    yield lambda: peak[0]
    peak[0] = _status("VmHWM") - start


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def cores() -> int:
    """Workers that suit this machine."""
    return max(1, len(os.sched_getaffinity(0)))
