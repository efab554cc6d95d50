"""What Ray itself writes to this process's output: filtered, and among our log lines. Healthy runs write none of it.

What is private in Ray is replaced here; `tests/distributed/test_ray_output.py` shows that it still works.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray._private.worker

log = logging.getLogger(__name__)

LEVEL = "RAY_BACKEND_LOG_LEVEL"
NO_FAULTS = ("worker processes have been started on node", "Terminated with signal 15")
"""Parts of messages that nothing is wrong by: actors that take no CPU are more than CPUs, and Ray ends its own."""

_print: Any = ray._private.worker.print_to_stdstream


def _log(data: dict[str, Any], ignore_prefix: bool) -> None:
    """Log what nodes have to say, which Ray prints to standard output; print what workers print, as Ray does."""
    if data.get("pid") != "raylet":
        _print(data, ignore_prefix)
        return
    for line in data["lines"]:
        level = logging.DEBUG if any(part in line for part in NO_FAULTS) else logging.WARNING
        log.log(level, "Ray: %s", line)


@contextmanager
def filtered() -> Iterator[None]:
    """Around `ray.init`: its errors that are none are not shown for as long as the process lives.

    Its compiled part logs an error for each actor that may start again and takes an object, as all of Ray Data's do.
    What matters reaches Python as an exception or by `_log`. The level is set for this process, not for those that it
    starts, whose log files keep everything; nothing is changed where it is set already, or where all is logged.
    """
    ray._private.worker.print_to_stdstream = _log
    if os.environ.get(LEVEL) or logging.getLogger().isEnabledFor(logging.DEBUG):
        yield
        return
    os.putenv(LEVEL, "fatal")  # processes that are started get `os.environ`, which does not have it
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            shown = {line.partition(b"] ")[2] or line: line for line in written}  # tries differ in their time alone
            os.write(2, b"".join(line for line in shown.values() if LEVEL.encode() not in line))  # that it is set
