"""What commands log: lines for people, or with HISEM_LOG=json one JSON object a line.

Either goes to standard error; standard output has what a command was asked for.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from hisem.errors import ConfigError
from hisem.escapes import escaped

log = logging.getLogger(__name__)

FORMATS = ("text", "json")
IDS = ("pair_id", "tile_id", "failure")
"""What a line may be about: fields that are in it where the code that logs says so by `extra`."""

_run: str | None = None


def wants_json() -> bool:
    """Whether HISEM_LOG asks for JSON."""
    return os.environ.get("HISEM_LOG") == "json"


def configure(debug: bool) -> None:
    """Set up the logs of a command's process. Raises `ConfigError` where HISEM_LOG is none of `FORMATS`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if wants_json() else TextLines())
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler])
    if (asked := os.environ.get("HISEM_LOG", "text")) not in FORMATS:
        raise ConfigError(f"HISEM_LOG={asked}: must be one of {', '.join(FORMATS)}.")
    if wants_json():
        logging.captureWarnings(True)
        sys.excepthook = _log_defect
        os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # its lines become ours
    else:
        sys.excepthook = _print_defect


@contextmanager
def of_run(name: str) -> Iterator[None]:
    """What this process logs in the block is of run `name`, whichever of its threads does; one at a time."""
    global _run
    before, _run = _run, name
    try:
        yield
    finally:
        _run = before


class TextLines(logging.Formatter):
    """A record as one line, whatever is in its message, and the lines of its traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Return the message without control characters."""
        return escaped(record.getMessage())

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        """Return the traceback without control characters but ends of lines."""
        return escaped(super().formatException(ei), keep="\n")


class JsonLines(logging.Formatter):
    """A record as one JSON object: time (UTC), level, logger, message; where there are any, run, `IDS`, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "run": _run,
            **{name: getattr(record, name, None) for name in IDS},
            "exception": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({name: value for name, value in fields.items() if value is not None}, default=str)


def _print_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that is not expected, as Python does, but its messages without control characters."""
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(escaped(text, keep="\n"))


def _log_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An error that nobody expected ends the process; its traceback is a field of one line."""
    log.critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))
