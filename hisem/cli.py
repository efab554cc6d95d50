"""What every entry point shares: options in, one clear message out, the exit code of the contract."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NoReturn, TypeVar

import tyro

from hisem import logs
from hisem.errors import HisemError
from hisem.ranges import RangeError, require_ranges

log = logging.getLogger(__name__)


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    FAILED_ROWS = 3


FLAT = tyro.conf.arg(name="")
"""Marks a field whose own fields are flags without its name before them."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options that every command has."""

    debug: bool = False
    """Show the traceback of an expected error and log debugging detail."""

    def __post_init__(self) -> None:
        require_ranges(self)


Options = TypeVar("Options", bound=Common)


def parse(
    options: type[Options], description: str, argv: Sequence[str] | None = None, default: Options | None = None
) -> Options:
    """The command line as `options`, over those of `default`.

    Exits with 2 and the usage on a mistake; raises `ConfigError` that names the flag for a number out of range.
    """
    try:
        if default is None:
            return tyro.cli(options, description=description, args=argv)
        return tyro.cli(options, description=description, args=argv, default=default)
    except RangeError as error:
        raise error.as_flag() from error


def run(main: Callable[[Options], int | None], options: Callable[[], Options]) -> NoReturn:
    """Parse with `options()`, run `main`, and end the process with its exit code.

    A `HisemError` prints its message alone, on one line; `--debug` adds the traceback. Ctrl-C ends with 130,
    and so does SIGTERM, by which jobs and pods are stopped.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    debug = "--debug" in sys.argv
    try:
        logs.configure(debug)
        code = main(options())
    except HisemError as error:
        _tell("error: ", " ".join(str(error).split()), debug)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _tell("", "interrupted", trace=False)
        sys.exit(130)
    sys.exit(code or Exit.DONE)


def _tell(label: str, message: str, trace: bool) -> None:
    """Say in the logs' format why the command ends, with the traceback of the error that is handled or without."""
    if logs.wants_json():
        log.error("%s", message, exc_info=trace)
        return
    if trace:
        traceback.print_exc()
    print(f"{label}{message}", file=sys.stderr)
