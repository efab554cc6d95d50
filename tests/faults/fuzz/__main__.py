"""Fuzz every format from the command line: `python -m tests.faults.fuzz --cases 20000 --seed 1 --output DIR`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from tests.faults.fuzz.harness import cores, fuzz, serve


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
    kinds = Counter((failure.case.target, failure.verdict, failure.detail[:120]) for failure in result.failures)
    examples = {(one.case.target, one.verdict, one.detail[:120]): one.case.number for one in result.failures}
    for kind, count in kinds.most_common():
        target, verdict, detail = kind
        lines.append(f"{count:5d} {target} #{examples[kind]}: {verdict}: {detail}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
