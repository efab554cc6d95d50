"""Failed tiles while a run goes on: kinds of failures that can be counted, and lines that name tiles."""

from __future__ import annotations

import logging
import re
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from hisem.captions.night import PATH, SUBJECT
from hisem.schemas import FAILED

log = logging.getLogger(__name__)

NAMED = 20
"""Tiles of each kind that are logged one by one: the table has all of them."""

ENDS = 500
"""Characters at either end of an error that are looked at: a path of a stranger's may be long, and takes its square."""

UNSUITABLE = "unsuitable"
"""What is of no other kind: bands, pixels, CRS or overlap that do not suit."""

KINDS = (
    ("model", r"the model failed|the model's output|captioners died"),
    ("changed", r"make the index again"),
    ("missing", r"no such file|It is not there"),
    ("denied", r"no permission|Access is refused"),
    ("unreachable", r"cannot be reached|The server is failing|its store failed"),
    ("damaged", r"copy it again|is a folder"),
)
"""What errors of a kind say. The first that is found counts; there are few, as each is a series of its own."""


def kind_of(error: str | None) -> str:
    """The kind of failure that a row's `error` tells: a name in `KINDS`, else `UNSUITABLE`."""
    told = error or ""
    if len(told) > 2 * ENDS:
        told = f"{told[:ENDS]} {told[-ENDS:]}"
    text = PATH.sub("", SUBJECT.sub("", told))  # which may hold any words
    return next((kind for kind, pattern in KINDS if re.search(pattern, text)), UNSUITABLE)


class FailureLog:
    """Logs which tiles failed and why: `NAMED` of each kind, so that many of one kind hide no other."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def tell(self, rows: pa.Table) -> Counter[str]:
        """Log the failed ones of `rows` (schema CAPTION); how many there are of each kind."""
        failed = rows.select(["pair_id", "tile_id", "error"]).filter(pc.equal(rows.column("status"), FAILED))
        counts: Counter[str] = Counter()
        for row in failed.to_pylist():
            kind = kind_of(row["error"])
            counts[kind] += 1
            if self._counts[kind] + counts[kind] <= NAMED:
                ids = {"pair_id": row["pair_id"], "tile_id": row["tile_id"], "failure": kind}
                log.warning("%s has failed: %s", row["tile_id"], row["error"], extra=ids)
        self._counts += counts
        return counts

    def end(self) -> None:
        """Log how many have failed beyond those that were named."""
        for kind, count in self._counts.items():
            if count > NAMED:
                told = "%d more tile(s) have failed (%s): the table has them, with the reasons"
                log.warning(told, count - NAMED, kind, extra={"failure": kind})
