"""One driver at a time on the folder of a run, a sweep, shards or the demo."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hisem.captions.lock import exclusive
from hisem.errors import BusyError

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0

Require = Callable[[], None]
"""Raises `HisemError` where the folder is held no longer: called before everything that others see."""


@contextmanager
def held(folder: str, what: str, seconds: float = 0.0) -> Iterator[Require]:
    """Hold `folder` for `what`, as error messages of others name it.

    Raises `BusyError` with the holder's name where another process still holds it after `seconds`.
    """
    until = time.monotonic() + seconds
    while True:
        lock = exclusive(folder, what)
        try:
            entered = lock.__enter__()
            break
        except BusyError as error:
            left = until - time.monotonic()
            if left <= 0:
                raise
            log.info("%s Trying again for %.0f s.", error, left)
        time.sleep(min(RETRY_SECONDS, left))
    try:
        yield entered.require
    finally:
        lock.__exit__(None, None, None)
