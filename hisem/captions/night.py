"""A night: what one run of the captioning job came to, in numbers that can be compared with other nights'.

Nights are kept as `OUT/_nights/<run>.json` beside the table they wrote.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from hisem import storage
from hisem.captions.lock import Lock, held
from hisem.config import from_dict, to_dict
from hisem.errors import ConfigError, StorageError
from hisem.schemas import FAILED, OK, STATUSES

log = logging.getLogger(__name__)

NIGHTS = "_nights"
LISTED = 10
"""Captions, and groups of errors, that a night names."""
READERS = 16
"""Files that are read at once; in an object store each takes its time to answer."""


@dataclass(frozen=True)
class Failure:
    """Failed rows whose errors are alike but for paths and numbers."""

    reason: str
    """What their errors share; `…` for a path or a name, `#` for a number."""
    count: int
    example: str
    """One of the errors as it is."""


@dataclass(frozen=True)
class Night:
    """What one run did. Its rows are those that this run captioned, skipped, or failed at."""

    run: str
    status: Literal["finished", "interrupted"]
    catalogue: str
    output: str
    model_name: str
    model_version: str
    model_digest: str
    started: str
    """ISO 8601 in UTC, as is `ended`."""
    ended: str
    seconds: float
    """Of work: of the last call, where a run was interrupted and went on; where it did not, from start to last row."""
    pairs: int
    tiles: int
    """Tiles of the catalogue's pairs, failed pairs counted once."""
    already: int
    """Tiles that had a row by this model and are left out; those of pairs that cannot be opened do not count."""
    statuses: dict[str, int]
    """Rows by status; each status is there. A pair that cannot be opened counts as failed in each run, also where
    the table has its row from an earlier one."""
    changed: int
    """Ok tiles that changed."""
    share_changed: float | None
    """`changed` by ok tiles, in [0, 1]; None without ok tiles."""
    mean_logprob: float | None
    """Of the captions of ok tiles, where it is finite; None without any."""
    std_logprob: float | None
    """Standard deviation of a tile's; None with fewer than two."""
    logprobs: int
    """Tiles behind both."""
    captions: dict[str, int]
    """The most frequent captions of changed tiles."""
    errors: tuple[Failure, ...]
    """The most frequent reasons of failed rows."""
    other_errors: int
    """Failed rows for reasons beyond `errors`."""
    tiles_per_second: float
    """Rows made in these seconds; 0 for none."""
    failed_before: int = 0
    """Tiles among `already` whose row is a failed one of an earlier run."""
    errors_before: tuple[Failure, ...] = ()
    """The most frequent reasons of those."""

    def __post_init__(self) -> None:
        for name in ("started", "ended"):
            if datetime.fromisoformat(getattr(self, name)).tzinfo is None:
                raise ValueError(f"{name} is {getattr(self, name)}, without a time zone")

    @property
    def failed(self) -> int:
        """Failed rows that the catalogue's pairs and tiles have, those of earlier runs included."""
        return self.statuses[FAILED] + self.failed_before

    def rows(self) -> dict[str, object]:
        """What a person is told: what, how much."""
        share, mean = self.share_changed, self.mean_logprob
        return {
            "run": self.run,
            "status": self.status,
            "model": f"{self.model_name} {self.model_version}",
            "pairs": self.pairs,
            "tiles": self.tiles,
            "captioned before": self.already - self.failed_before,
            **({"failed before, left to --retry-failed": self.failed_before} if self.failed_before else {}),
            **{f"rows {status}": count for status, count in self.statuses.items()},
            "changed": self.changed,
            **({} if share is None else {"changed, of the tiles that are ok": percent(share)}),
            **({} if mean is None else {"mean log-probability of a caption": mean}),
            **{f"caption: {text}": count for text, count in self.captions.items()},
            **{
                f"failed: {one.example}" if one.count == 1 else f"failed, for example: {one.example}": one.count
                for one in self.errors
            },
            **({"failed: for other reasons": self.other_errors} if self.other_errors else {}),
            **{f"failed before, for example: {one.example}": one.count for one in self.errors_before},
            "seconds": self.seconds,
            "tiles per second": self.tiles_per_second,
        }

    def metrics(self) -> dict[str, float]:
        """What is tracked: the numbers that there are, all finite."""
        values = {
            "pairs": self.pairs,
            "tiles": self.tiles,
            "already": self.already,
            **{f"rows_{status}": count for status, count in self.statuses.items()},
            "failed_before": self.failed_before,
            "changed": self.changed,
            "share_changed": self.share_changed,
            "mean_logprob": self.mean_logprob,
            "std_logprob": self.std_logprob,
            "seconds": self.seconds,
            "tiles_per_second": self.tiles_per_second,
        }
        return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def summarise(
    rows: pa.Table,
    *,
    run: str,
    status: Literal["finished", "interrupted"],
    catalogue: str,
    output: str,
    model_name: str,
    model_version: str,
    model_digest: str,
    started: datetime,
    ended: datetime,
    pairs: int,
    tiles: int,
    already: int,
    worked: tuple[int, float] | None = None,
    before: pa.ChunkedArray | None = None,
) -> Night:
    """The night of a run that made `rows`: schema CAPTION, of which the columns below suffice.

    `status`, `error`, `caption`, `changed`, `caption_logprob`. Both times have a time zone. The order of the
    rows does not matter. `worked` are the rows and the seconds of the call that ended a run which had been
    interrupted; otherwise it made all rows between both times. `before` holds the errors of tiles that failed in an
    earlier run and are not captioned again.
    """
    rows = rows.select(["status", "error", "caption", "changed", "caption_logprob"])
    counts = _counted(rows.column("status"))
    ok = rows.filter(pc.equal(rows.column("status"), OK))
    changed = ok.filter(pc.fill_null(ok.column("changed"), False))
    logprobs = ok.column("caption_logprob").cast(pa.float64())
    logprobs = logprobs.filter(pc.fill_null(pc.is_finite(logprobs), False))
    errors, others = failures(rows.filter(pc.equal(rows.column("status"), FAILED)).column("error"))
    before = pa.chunked_array([], pa.string()) if before is None else before
    done, seconds = worked or (len(rows), max((ended - started).total_seconds(), 0.0))
    return Night(
        run=run,
        status=status,
        catalogue=catalogue,
        output=output,
        model_name=model_name,
        model_version=model_version,
        model_digest=model_digest,
        started=_iso(started),
        ended=_iso(ended),
        seconds=seconds,
        pairs=pairs,
        tiles=tiles,
        already=already,
        statuses={name: counts.get(name, 0) for name in STATUSES},
        changed=len(changed),
        share_changed=len(changed) / len(ok) if len(ok) else None,
        mean_logprob=pc.mean(logprobs).as_py(),
        std_logprob=pc.stddev(logprobs, ddof=1).as_py(),
        logprobs=len(logprobs),
        captions=dict(_most_common(_counted(changed.column("caption")))[:LISTED]),
        errors=errors,
        other_errors=others,
        tiles_per_second=done / seconds if seconds else 0.0,
        failed_before=len(before),
        errors_before=failures(before)[0],
    )


def failures(errors: pa.ChunkedArray) -> tuple[tuple[Failure, ...], int]:
    """Errors by what they share, the most frequent first, and the number of those beyond the first `LISTED`."""
    counts: Counter[str] = Counter()
    messages: dict[str, list[str]] = defaultdict(list)
    for message, count in _counted(pc.fill_null(errors, "no reason given")).items():
        reason = generalised(message)
        counts[reason] += count
        messages[reason].append(message)
    ranked = _most_common(counts)
    listed = tuple(Failure(reason, count, min(messages[reason])) for reason, count in ranked[:LISTED])
    return listed, sum(count for _, count in ranked[LISTED:])


SUBJECT = re.compile(r"^(?:\S+|(?:[a-z][a-z0-9+.-]*://|[/~]).*?\.\w{2,5}): ")
"""What an error is about, before its first colon: a path, which may have blanks if it has a suffix, or a pair."""
PATH = re.compile(r"(?:\b[a-z][a-z0-9+.-]*://|(?<![\w./])[/~])[^\s'\"(),;]*[^\s'\"(),;:.]", re.I)
FILE = re.compile(r"(?<![^\s'\"(])[^\s'\"()]+\.[a-z][a-z0-9]{1,4}(?=[\s'\"(),;:.]|$)", re.I)
"""A word with a suffix."""
NAME = re.compile(r"\b(?=[\w-]*\d)(?=[\w-]*[A-Za-z_])[\w-]{10,}\b")
"""A long word of letters and digits: a scene, a digest."""
NUMBER = re.compile(r"(?<!\w)[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?", re.I)
"""A number that is no part of a name such as uint16."""
LONGEST = 500
"""Characters of an error that are looked at."""


def generalised(message: str) -> str:
    """An error without what differs from one tile to another: its subject, other paths, names and numbers."""
    text = SUBJECT.sub("", message[:LONGEST])
    for pattern in (PATH, FILE, NAME):
        text = pattern.sub("…", text)
    return NUMBER.sub("#", text)


def write_night(output: str, night: Night, lock: Lock | None = None) -> None:
    """Keep a night beside the table, in place of one of the same run."""
    content = json.dumps(to_dict(night), indent=1, allow_nan=False)
    with held(output, "summary of a run", lock) as lock:
        lock.update(f"{NIGHTS}/{night.run}.json", content.encode())


def read_nights(output: str, digest: str, since: datetime) -> list[Night]:
    """Nights of a model that started at `since` or later, the earliest first.

    A file that is no night, or cannot be read, is left out with a warning that names it.
    """
    paths = storage.list_files(storage.join(output, NIGHTS), ".json")
    with ThreadPoolExecutor(READERS) as pool:
        nights = [night for night in pool.map(lambda path: _night(output, path), paths) if night is not None]
    wanted = [one for one in nights if one.model_digest == digest and moment(one.started) >= since]
    return sorted(wanted, key=lambda one: (moment(one.started), one.run))


def find_night(output: str, run: str) -> Night | None:
    """The night of a run, None where it has none yet or a file that is no night."""
    path = storage.join(output, NIGHTS, f"{run}.json")
    return _night(output, path) if storage.exists(path) else None


def _night(output: str, path: str) -> Night | None:
    """The night in a file, whose path is on the output's file system."""
    uri = storage.join(output, NIGHTS, path.rpartition(f"/{NIGHTS}/")[2])
    try:
        data = json.loads(storage.read_bytes(uri))
        lists = {name: tuple(data[name]) for name in ("errors", "errors_before") if name in data}
        night = from_dict(Night, data | lists, uri)
        if f"{night.run}.json" != uri.rpartition("/")[2]:
            raise ValueError(f"the file is named otherwise than the run {night.run!r}")
        return night
    except (StorageError, ConfigError, ValueError, TypeError, KeyError, RecursionError) as error:
        log.warning("%s: not the summary of a night, and left out (%s: %s).", uri, type(error).__name__, error)
        return None


def moment(text: str) -> datetime:
    """The time that `started` and `ended` write."""
    return datetime.fromisoformat(text)


def percent(share: float) -> str:
    """A share in percent, of three digits."""
    return f"{100 * share:#.3g}".rstrip(".") + " %"


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds")


def _counted(values: pa.ChunkedArray) -> dict[str, int]:
    """How often each value is there; null is none."""
    counts: Iterator[pa.StructScalar] = iter(pc.value_counts(values.drop_null()))
    return {one["values"].as_py(): one["counts"].as_py() for one in counts}


def _most_common(counts: dict[str, int]) -> list[tuple[str, int]]:
    """The most frequent first, equal ones by name, so that the order of rows decides nothing."""
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))
