"""What every entry point shares: options in, one clear message out, the exit code of the contract."""

from __future__ import annotations

import io
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import NoReturn, TypeVar

import tyro

from hisem import logs
from hisem.errors import HisemError
from hisem.escapes import escaped
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
    """The command line as `options`, with `default` for what it lacks.

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
    and so does SIGTERM, by which jobs and pods are stopped. Where nothing reads the output any more, as behind
    `| head`, it ends with 141, as a shell reports it.
    """
    _use_utf8()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _piped():
        _run(main, options)


def _run(main: Callable[[Options], int | None], options: Callable[[], Options]) -> NoReturn:
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


def _use_utf8() -> None:
    """Start this process again in UTF-8 mode where the locale is ASCII: names of files could not be written otherwise.

    What the terminal's encoding lacks is escaped in any case.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _piped() -> Iterator[None]:
    """End the process quietly where the other end of its standard output or error is closed."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # which the shell has closed
                sys.stdout.flush()
    except BrokenPipeError:
        broken = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and _is_broken(stream.fileno())]
        if not broken:
            raise  # a connection's
        for stream in broken:  # Python flushes once more when it exits, and would print that this fails
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _is_broken(descriptor: int) -> bool:
    """Return whether this is a pipe that nothing reads any more."""
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are reported in any case
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _tell(label: str, message: str, trace: bool) -> None:
    """Say in the logs' format why the command ends, with the traceback of the error that is handled or without."""
    if logs.wants_json():
        log.error("%s", message, exc_info=trace)
        return
    if trace:
        print(escaped(traceback.format_exc(), keep="\n"), end="", file=sys.stderr)
    print(escaped(f"{label}{message}"), file=sys.stderr)
