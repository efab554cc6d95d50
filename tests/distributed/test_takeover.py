"""A run that is suspended at any moment, taken over, and continued: it writes nothing more, and the table is right.

The old run is suspended before each of its writes in turn, between the last check of the lock and the write itself
where the storage allows that. Another run takes over and works to its end. Then the old one continues.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from hisem import conditional, object_files, storage
from hisem.captions import holder, lock
from hisem.captions import table as captions
from hisem.captions.lock import exclusive
from hisem.captions.options import Captioning
from hisem.captions.settings import refuse_other_settings, require_settings
from hisem.distributed import nightly, work
from hisem.distributed.captioner import CaptionOptions
from hisem.errors import BusyError, StorageError, TakenOverError
from hisem.schemas import CATALOGUE, FAILED, INDEX, OK, STAGED
from tests.captions.test_table import OLD, row, rows

MAY, JUNE, JULY = (datetime(2024, month, 1, tzinfo=UTC) for month in (5, 6, 7))
PAIRS = {"p": ["p/0", "p/1"], "moved": ["moved/0"], "opens": ["opens/0"], "gone": []}
OTHERS = {"p": ["p/0"], "q": ["q/0"], "gone": ["gone/0"]}
"""Tiles of the pairs of two catalogs; a pair without tiles cannot be opened."""


def catalogue(pairs: dict[str, list[str]]) -> pa.Table:
    made = [{"pair_id": pair, "before": ["b"], "after": ["a"], "after_time": JUNE} for pair in pairs]
    return pa.Table.from_pylist(made, schema=CATALOGUE)


def index_of(pairs: dict[str, list[str]]) -> Callable[..., tuple[pa.Table, pa.Table]]:
    """Return what replaces `index_archive`, which needs rasters and Ray."""
    common = {"before": ["b"], "after": ["a"], "after_time": JUNE, "row_off": 0, "col_off": 0, "height": 1, "width": 1}
    tiles = [common | {"tile_id": tile, "pair_id": pair} for pair in pairs for tile in pairs[pair]]
    broken = [common | {"tile_id": f"{pair}/pair", "pair_id": pair} for pair in pairs if not pairs[pair]]
    failed = pa.Table.from_pylist(broken, schema=INDEX)
    for name, value in (("status", FAILED), ("error", "no such file")):
        failed = failed.append_column(name, pa.array([value] * len(broken), pa.string()))
    found = pa.Table.from_pylist(tiles, schema=INDEX), failed
    return lambda *_: found


def captioned_by(name: str) -> Callable[..., Iterator[pa.Table]]:
    def captioned(todo: pa.Table, options: CaptionOptions, digest: str) -> Iterator[pa.Table]:
        for tile in todo.to_pylist():
            more = {"status": OK, "caption": name, "model_name": "hisem", "model_version": "1", "model_digest": digest}
            yield pa.Table.from_pylist([tile | more | {"captioned_at": JULY}], schema=STAGED)

    return captioned


class Silent:
    """Stands in for Ray's metrics."""

    def __init__(self, *_: Any) -> None: ...

    def made(self, *_: Any) -> None: ...

    def rate(self, *_: Any) -> None: ...


def caption(
    output: str,
    name: str,
    pairs: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any] | None = None,
    tracking: str | None = None,
) -> None:
    """Caption the pairs again as `caption_archive` does, with the caption `name`."""
    options = CaptionOptions(
        output, Path("bundle"), "hisem", "1", 64, captioning=Captioning(recaption=True), tracking=tracking
    )
    with monkeypatch.context() as patch, exclusive(output, name) as held:
        patch.setattr(work, "index_archive", index_of(pairs))
        patch.setattr(nightly, "captioned", captioned_by(name))
        captions.require_table(output)
        require_settings(output, settings or {}, held)
        nightly._prepare(held)
        nightly._caption(catalogue(pairs), options, held)


def before(output: str) -> None:
    """A table with a row to replace, one whose date is corrected, and failed pairs, one alone in its file."""
    failed = {"status": FAILED, "error": "no such file", "caption": None}
    captions.publish(
        rows(
            row("p/0", after_time=JUNE, caption="before", captioned_at=MAY),
            row("moved/0", after_time=MAY, caption="before", captioned_at=MAY),
            row("opens/pair", after_time=JULY, captioned_at=MAY, **failed),
            row("gone/pair", after_time=JUNE, captioned_at=MAY, **failed),
        ),
        output,
    )


class Suspended:
    """The old run, in a thread that is suspended before its write number `moment`."""

    def __init__(self, moment: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
        self.name: str | None = None
        """What it was about to write."""
        self.error: BaseException | None = None
        self._left = moment
        self._reached, self._go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(act,))
        for owner, deed in (
            (object_files.ObjectFiles, "_put"),
            (conditional.LocalFiles, "put"),
            (conditional.LocalFiles, "remove"),
        ):
            monkeypatch.setattr(owner, deed, self._hooked(getattr(owner, deed), 1))
        monkeypatch.setattr(storage, "delete", self._hooked(storage.delete, 0))
        monkeypatch.setattr("hisem.captions.staging.write_durably", self._hooked(conditional.write_durably, 0))
        real = holder.myself
        monkeypatch.setattr(
            "hisem.captions.lock.myself",
            lambda what: replace(real(what), machine="elsewhere" if self._mine() else "here"),
        )

    def start(self) -> bool:
        """Run to the moment; False where it ended before."""
        self._thread.start()
        self._reached.wait(60)
        return self.name is not None

    def resume(self) -> None:
        """Run to the end."""
        self._go.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _mine(self) -> bool:
        return threading.current_thread() is self._thread

    def _hooked(self, real: Callable[..., Any], argument: int) -> Callable[..., Any]:
        def act(*args: Any, **more: Any) -> Any:
            if self._mine() and self.name is None:
                self._left -= 1
                if self._left < 0:
                    self.name = str(args[argument])
                    self._reached.set()
                    self._go.wait(120)
            return real(*args, **more)

        return act

    def _run(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        self._reached.set()


def state(output: str) -> dict[str, bytes]:
    """All files but those of the lock and staged rows."""
    fs, root = storage.filesystem(output)
    found = {}
    for info in fs.get_file_info(pa.fs.FileSelector(root, recursive=True)):
        name = info.path[len(root) :].strip("/")
        if info.is_file and not name.startswith("_locks") and not (name.startswith("_staging/") and "job" not in name):
            found[name] = storage.read_bytes(storage.join(output, name))
    return found


def contents(output: str) -> dict[str, str | None]:
    """Status or caption of each tile. Raises where one is there twice."""
    found = captions.read_captions(output).to_pylist()
    twice = [key for key, count in Counter((r["tile_id"], r["model_digest"]) for r in found).items() if count > 1]
    assert not twice, twice
    return {r["tile_id"]: r["caption"] or r["status"] for r in found}


Allowed = dict[str, set[str | None]]
"""What the table may hold of each tile at the end, None for no row."""

CONTINUES: Allowed = {
    "p/0": {"old", "new"},
    "p/1": {"old", "new"},
    "moved/0": {"old", "new"},
    "opens/0": {"old", "new"},
    "opens/pair": {None},
    "gone/pair": {FAILED},
}
ANOTHER: Allowed = {
    "p/0": {"new"},
    "p/1": {"old", None},
    "moved/0": {"old", "before"},
    "opens/0": {"old", None},
    "opens/pair": {FAILED, None},
    "q/0": {"new"},
    "gone/0": {"new"},
    "gone/pair": {None},
}
SUCCESSORS = {"continues": (PAIRS, CONTINUES), "another": (OTHERS, ANOTHER)}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 1000.0)
    monkeypatch.setattr(lock, "STALE", 0.1)
    monkeypatch.setattr(lock, "LOOK", 0.01)
    monkeypatch.setattr(nightly, "CaptionMetrics", Silent)
    monkeypatch.setattr(nightly, "bundle_digest", lambda _: OLD)
    monkeypatch.setattr(nightly, "STAGE_ROWS", 2)


@pytest.mark.parametrize(
    ("place", "successor"),
    [
        ("folder", "continues"),
        pytest.param("folder", "another", marks=pytest.mark.slow),
        pytest.param("bucket", "continues", marks=pytest.mark.slow),
        pytest.param("bucket", "another", marks=pytest.mark.slow),
    ],
)
def test_a_run_suspended_before_any_write_writes_nothing_after_it_was_taken_over(
    place: str, successor: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path) if place == "folder" else request.getfixturevalue("bucket")
    pairs, allowed = SUCCESSORS[successor]
    names: list[str] = []
    for moment in range(100):
        output = storage.join(root, f"out-{moment}")
        before(output)
        with monkeypatch.context() as patch:
            old = Suspended(moment, lambda output=output: caption(output, "old", PAIRS, monkeypatch), patch)  # type: ignore[misc]
            reached = old.start()
            if not reached:
                old.resume()
                break
            assert old.name is not None
            names.append(old.name)
            caption(output, "new", pairs, monkeypatch)
            left = state(output)
            old.resume()
        found = contents(output)
        assert found.keys() <= allowed.keys(), (moment, old.name)
        if isinstance(old.error, TakenOverError):
            assert state(output) == left, (moment, old.name)
            assert {tile: found.get(tile) for tile in allowed if found.get(tile) not in allowed[tile]} == {}, old.name
            assert not {"opens/0", "opens/pair"} <= found.keys(), (moment, old.name)
        else:  # it did not hold the table yet, or not any more
            assert old.error is None or isinstance(old.error, BusyError)
            assert "writer.json" in old.name or old.name.rpartition("/")[0].endswith("_staging"), (moment, old.name)
    assert not reached
    assert old.error is None
    for kind in ("captions/", "_nights/", "pages/", "job.json", "_staging/", "writer.json"):
        assert any(kind in name for name in names), (kind, names)


@pytest.mark.parametrize("place", ["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def test_the_settings_of_a_new_table_are_those_of_the_run_that_took_it_over(
    place: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path) if place == "folder" else request.getfixturevalue("bucket")
    names: list[str] = []
    for moment in range(20):
        output = storage.join(root, f"out-{moment}")
        with monkeypatch.context() as patch:
            act = partial(caption, output, "old", PAIRS, monkeypatch, {"nodata": 0.0})
            old = Suspended(moment, act, patch)
            assert old.start()
            names.append(str(old.name))
            refused = False
            try:
                caption(output, "new", OTHERS, monkeypatch)
            except StorageError:  # the old run had put rows aside: it has decided
                refused = True
            old.resume()
        if refused:
            break
        if isinstance(old.error, TakenOverError):
            refuse_other_settings(output, {})
        elif old.error is not None:  # it came to the table after the other one, or published first
            assert isinstance(old.error, StorageError)
        assert {"p/0": "new", "q/0": "new", "gone/0": "new"}.items() <= contents(output).items()
    assert refused
    assert any("_settings.json" in name for name in names)


class TrackedRun:
    """Stands in for an MLflow run."""

    def __init__(self, name: str) -> None:
        self.run_id, self.ended = name, list[str]()

    def params(self, *_: Any) -> None: ...

    def end(self, status: str) -> None:
        self.ended.append(status)


@pytest.mark.parametrize("what", ["/captions/", "/_nights/", "/pages/"])
def test_a_run_that_was_taken_over_fails_and_leaves_its_mlflow_run_alone(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[TrackedRun] = []

    def start(_: str, name: str, *__: Any) -> TrackedRun:
        runs.append(TrackedRun(name))
        return runs[-1]

    monkeypatch.setattr("hisem.tracking.start_run", start)
    monkeypatch.setattr(nightly, "report", lambda *_: None)
    for moment in range(60):
        output = str(tmp_path / str(moment))
        before(output)
        runs.clear()
        with monkeypatch.context() as patch:
            old = Suspended(moment, partial(caption, output, "old", PAIRS, monkeypatch, tracking="sqlite://"), patch)
            assert old.start()
            if found := what in str(old.name).removeprefix(output) or str(old.name).startswith(what[1:]):
                caption(output, "new", PAIRS, monkeypatch, tracking="sqlite://")
            old.resume()
        if found:
            break
    assert isinstance(old.error, TakenOverError)
    assert old.error.exit_code == 1
    assert [run.ended for run in runs] == [[], ["FINISHED"]]


def test_a_run_of_any_catalog_repairs_a_table_that_has_tiles_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path)
    before(output)
    (file,) = (tmp_path / "captions" / "acquired=2024-05-01").rglob("*.parquet")
    file.with_name("copy.parquet").write_bytes(file.read_bytes())
    (tmp_path / "captions" / f".p.parquet.{'0' * 32}.tmp").write_bytes(b"left by a killed run")
    with pytest.raises(AssertionError):
        contents(output)
    caption(output, "new", {"q": ["q/0"]}, monkeypatch)
    assert contents(output)["moved/0"] == "before"
    assert not list(tmp_path.rglob("*.tmp"))
