"""Fuzz every format from the command line: `python -m tests.faults.fuzz --cases 20000 --seed 1 --output DIR`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

from tests.faults.fuzz.harness import Failure, cores, fuzz, serve


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, help="damaged files in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--output", type=Path, help="folder for the files of failures")
    parser.add_argument("--format", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        serve(chosen.worker, sys.stdin, sys.stdout)
        return 0
    since = time.monotonic()
    result = fuzz(chosen.cases, chosen.seed, chosen.workers, chosen.output, tuple(chosen.format))
    lines = [result.table(), f"seed {chosen.seed}, {time.monotonic() - since:.0f} s, {chosen.workers} worker(s)"]
    kinds: defaultdict[tuple[str, str, str], list[Failure]] = defaultdict(list)
    for one in result.failures:
        kinds[one.case.target, one.verdict, one.detail.partition(":")[0]].append(one)
    for (target, verdict, _), alike in sorted(kinds.items(), key=lambda item: -len(item[1])):
        first = alike[0]
        detail = " ".join(first.detail.split())[:160]
        lines.append(f"{len(alike):5d} {target}, as in case {first.case.number}: {verdict}: {detail}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
