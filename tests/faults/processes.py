"""Processes that these tests have started, by what they call themselves."""

from __future__ import annotations

import os
import re
from contextlib import suppress

import psutil


def processes(pattern: str, parent: int | None = None) -> list[int]:
    """Numbers of the processes whose command line has the pattern: all below this process, or the children of one.

    Others of this machine are left alone: tests that run beside these have Ray's processes, too.
    """
    of = psutil.Process(os.getpid() if parent is None else parent)
    found = []
    for process in of.children(recursive=parent is None):
        with suppress(psutil.Error):  # it has ended
            if re.search(pattern, " ".join(process.cmdline())):
                found.append(process.pid)
    return found
