"""Captioners that die: their tiles are tried again, then one by one, then given up; a busy cluster is told of."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import torch

from hisem import storage
from hisem.archive.catalogue import read_catalogue
from hisem.captions.options import Captioning
from hisem.distributed import attempts, captioner, session, waiting
from hisem.distributed.attempts import Attempts
from hisem.distributed.captioner import (
    DEADLY,
    PACKED,
    CaptionOptions,
    FedActor,
    ReadingActor,
    ReadingCaptioner,
    _packed,
    captioned,
    read_pixels,
)
from hisem.distributed.index import cut, index_archive
from hisem.distributed.shipping import ship
from hisem.errors import CaptioningError
from hisem.model.hisem import HiSem
from hisem.schemas import FAILED
from hisem.text.vocabulary import SPECIALS, Vocabulary
from tests.distributed.conftest import TILE, tiny

Rows = dict[str, tuple[str, str | None, str | None]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was never trained."""
    folder = tmp_path_factory.mktemp("random") / "bundle"
    torch.manual_seed(0)
    words = Vocabulary((*SPECIALS, *(f"w{number}" for number in range(20))))
    HiSem(tiny().model, words, pretrained=False).eval().save_pretrained(folder)
    return folder


def options(bundle: Path, output: Path) -> CaptionOptions:
    asked = Captioning(batch_size=8, captioners=1, page=False)
    return CaptionOptions(str(output), bundle, "tiny", "1", TILE, captioning=asked)


@pytest.fixture
def index(archive: str, ray_cluster: None) -> pa.Table:
    """16 tiles of one pair."""
    return index_archive(read_catalogue(storage.join(archive, "catalogue.parquet")).slice(0, 1), TILE)[0]


def said(tables: list[pa.Table]) -> Rows:
    """Status, caption and error of each tile, which is there once."""
    rows = pa.concat_tables(tables).to_pylist()
    found = {row["tile_id"]: (row["status"], row["caption"], row["error"]) for row in rows}
    assert len(found) == len(rows)
    return found


def truth(index: pa.Table, options: CaptionOptions) -> Rows:
    """What a captioner of this process says, that asks nobody."""
    whole = ReadingCaptioner(ship(options.model), options, "digest")
    return said([rows for block in cut(index) for rows in whole(block)])


def unpacked(tables: list[pa.Table]) -> list[pa.Table]:
    return [pa.ipc.open_stream(row.as_buffer()).read_all() for table in tables for row in table.column(PACKED)]


def test_tiles_are_tried_again_then_given_up(ray_cluster: None) -> None:
    book = Attempts.remote(1, 2, 10)  # type: ignore[attr-defined]
    begin: Callable[[Any], bool] = lambda tiles: ray.get(book.begin.remote(tiles))  # noqa: E731
    assert ray.get(book.news.remote()) == (False, [])
    assert [begin(("p/a", 4)) for _ in range(4)] == [True, True, False, False]
    assert ray.get(book.news.remote()) == (
        True,
        [
            "captioners have died 1 time(s) on the 4 tiles from p/a on: another one tries",
            "captioners have died 2 time(s) on the 4 tiles from p/a on: they are tried one by one",
        ],
    )
    assert begin(("p/a", 1))
    ray.get(book.end.remote(("p/a", 1)))
    assert [begin(("p/a", 1)) for _ in range(3)] == [True, True, False]  # what was done counts no more
    assert ray.get(book.news.remote())[1][-1] == "captioners have died 2 time(s) on tile p/a: it is a failed row"


def test_captioners_that_only_ever_start_end_the_run(ray_cluster: None) -> None:
    book = Attempts.remote(2, 2, 3)  # type: ignore[attr-defined]
    for _ in range(2):  # counted from the last batch that was done
        for _ in range(5):
            ray.get(book.start.remote())
        ray.get(book.begin.remote(("p/a", 4)))
        ray.get(book.end.remote(("p/a", 4)))
    for _ in range(6):
        ray.get(book.start.remote())
    with pytest.raises(
        CaptioningError, match=r"died 6 times and nothing was captioned between, at last on the 4 tiles"
    ):
        ray.get(book.start.remote())
    assert "kept aside" in str(ray.get(book.error.remote()))


def test_tiles_that_are_given_up_end_no_run_before_they_are_many(ray_cluster: None) -> None:
    book = Attempts.remote(1, 2, 3)  # type: ignore[attr-defined]

    def give_up(number: int) -> None:
        for _ in range(2):
            ray.get(book.start.remote())
            assert ray.get(book.begin.remote((f"p/{number}", 1)))
        assert not ray.get(book.begin.remote((f"p/{number}", 1)))

    for number in range(attempts.SPARED):
        give_up(number)
    ray.get(book.begin.remote(("p/good", 1)))
    ray.get(book.end.remote(("p/good", 1)))
    for number in range(100, 100 + attempts.SPARED + 1):
        give_up(number)
    ray.get(book.start.remote())
    with pytest.raises(CaptioningError, match="nothing was captioned between"):
        ray.get(book.start.remote())


@pytest.mark.parametrize("fed", [False, True])
def test_after_deaths_on_a_batch_its_tiles_are_tried_alone(
    index: pa.Table, bundle: Path, tmp_path: Path, fed: bool
) -> None:
    """The deaths are those that an `Attempts` was told of, the captioners in this process."""
    whole = options(bundle, tmp_path)
    expected = truth(index, whole)
    ids = index.column("tile_id").to_pylist()
    book = Attempts.remote(1, 2, 10)  # type: ignore[attr-defined]
    for tiles in ((ids[0], 8), (ids[3], 1)):
        for _ in range(2):
            ray.get(book.begin.remote(tiles))
    if fed:
        actor = FedActor(ship(bundle), whole, "digest", book)
        packed = [actor(tiles) for tiles in read_pixels(index, TILE, at_once=8)]
    else:
        reading = ReadingActor(ship(bundle), whole, "digest", book)
        packed = [one for block in cut(index) for one in reading(block)]
    assert [len(rows) for rows in unpacked(packed)] == [8, 8]
    assert said(unpacked(packed)) == expected | {ids[3]: (FAILED, None, DEADLY)}


@pytest.mark.slow
def test_a_tile_that_kills_its_captioner_is_a_failed_row_and_no_other_is(
    index: pa.Table, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = options(bundle, tmp_path)
    deadly = index.column("tile_id")[9].as_py()

    class Deadly(ReadingCaptioner):
        """Killed as the kernel kills who takes too much memory."""

        def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
            yield from map(_packed, super().__call__(block))

        def may(self, tiles: pa.Table) -> bool:
            may = super().may(tiles)
            if may and deadly in tiles.column("tile_id").to_pylist():
                os.kill(os.getpid(), signal.SIGKILL)
            return may

    monkeypatch.setattr(captioner, "ReadingActor", Deadly)
    monkeypatch.setattr(attempts, "DEATHS", 1)
    found = said(list(captioned(index, whole, "digest")))
    assert found == truth(index, whole) | {deadly: (FAILED, None, DEADLY)}
    assert f"died 1 time(s) on tile {deadly}: it is a failed row" in caplog.text


@pytest.mark.slow
def test_captioners_that_die_as_they_start_end_the_run_with_the_reason(
    index: pa.Table, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stillborn(ReadingCaptioner):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(captioner, "ReadingActor", Stillborn)
    monkeypatch.setattr(attempts, "STARTS", 1)
    told = "have died 1 times and nothing was captioned between, before they had loaded the model"
    with session.cluster(), pytest.raises(CaptioningError, match=told):
        list(captioned(index, options(bundle, tmp_path), "digest"))


@contextmanager
def busy_until(seen: Callable[[], bool]) -> Iterator[None]:
    """All CPUs are another job's until something was `seen`."""

    @ray.remote(num_cpus=int(session.cpus()))
    class Other:
        def there(self) -> bool:
            return True

    other = Other.remote()  # type: ignore[attr-defined]
    assert ray.get(other.there.remote())

    def leave() -> None:
        until = time.monotonic() + 60
        while not seen() and time.monotonic() < until:
            time.sleep(0.05)
        ray.kill(other)

    thread = threading.Thread(target=leave)
    thread.start()
    yield
    thread.join()


def test_a_busy_cluster_is_waited_for_and_that_is_said_again_and_again(
    archive: str,
    index: pa.Table,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for module in (attempts, waiting):
        monkeypatch.setattr(module, "QUIET_SECONDS", 0.3)
    caplog.set_level("INFO")
    cpus = f"free are 0 of {int(session.cpus())} CPUs"
    opening = f"waiting for scenes to be opened, by tasks of 1 CPU each; {cpus}"
    with busy_until(lambda: caplog.text.count(opening) >= 2):
        found, _ = index_archive(read_catalogue(storage.join(archive, "catalogue.parquet")).slice(0, 1), TILE)
    assert caplog.text.count(opening) >= 2
    assert found.equals(index)
    starting = f"waiting for 1 captioner(s) of 1 CPUs each to start; {cpus}"
    with busy_until(lambda: caplog.text.count(starting) >= 2):
        rows = said(list(captioned(index, options(bundle, tmp_path), "digest")))
    assert caplog.text.count(starting) >= 2
    assert set(rows) == set(index.column("tile_id").to_pylist())
