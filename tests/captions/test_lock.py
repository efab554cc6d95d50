"""One writer at a time: who holds is named, who is dead is found out, and nobody is let in beside another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from hisem import storage
from hisem.captions import lock
from hisem.captions.lock import Entry, exclusive
from hisem.errors import BusyError, StorageError


@pytest.fixture(params=["folder", "bucket"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(tmp_path / "out") if request.param == "folder" else storage.join(request.getfixturevalue("bucket"), "out")
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.3)
    monkeypatch.setattr(lock, "STALE", 5.0)  # a bucket tells whole seconds, and a busy machine stalls
    monkeypatch.setattr(lock, "LOOK", 0.05)


def elsewhere(**over: Any) -> Entry:
    """A holder on another machine."""
    return replace(Entry("far", "another machine", 4711, "1", "2026-01-01T00:00:00+00:00", "night", True), **over)


def put(output: str, entry: Entry, name: str = "20260101T000000000000-aaaaaaaa.json") -> str:
    uri = storage.join(output, lock.LOCKS, name)
    storage.write_bytes(uri, json.dumps(asdict(entry)).encode())
    return uri


def entries(output: str) -> list[str]:
    return storage.list_files(storage.join(output, lock.LOCKS))


def test_a_second_run_is_refused_with_the_holders_name_until_the_first_ends(output: str) -> None:
    with exclusive(output, "captioning of a.parquet"):
        told = r"held by captioning of a.parquet \(process \d+ on .*, since 20"
        with pytest.raises(BusyError, match=told), exclusive(output, "captioning of b.parquet"):
            pass
        assert len(entries(output)) == 1
    assert entries(output) == []
    with exclusive(output, "captioning of b.parquet"):
        pass


def test_a_holder_on_this_machine_that_was_killed_is_found_out_at_once(output: str) -> None:
    code = (
        "import sys, time; from hisem.captions.lock import exclusive\n"
        "with exclusive(sys.argv[1], 'night'):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, output], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match=f"process {holder.pid} on "), exclusive(output, "other"):
        pass
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie until it is waited for
    began = time.monotonic()
    with exclusive(output, "other"):
        assert time.monotonic() - began < 2
    holder.wait()


def test_a_silent_holder_on_another_machine_is_waited_for_then_taken_for_dead(output: str) -> None:
    uri = put(output, elsewhere())
    began = time.monotonic()
    with exclusive(output, "other"):
        assert time.monotonic() - began > 1
        assert not storage.exists(uri)


def test_a_holder_on_another_machine_that_gives_signs_of_life_is_left_alone(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT", 1.5)
    uri, over = put(output, elsewhere()), threading.Event()

    def beat() -> None:
        while not over.wait(0.5):
            put(output, elsewhere())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(BusyError, match=r"held by night \(process 4711 on far"), exclusive(output, "other"):
            pass
    finally:
        over.set()
        thread.join()
    assert [path.rpartition("/")[2] for path in entries(output)] == [uri.rpartition("/")[2]]


def test_an_entry_that_nobody_understands_is_not_trusted_to_be_dead(output: str) -> None:
    storage.write_bytes(storage.join(output, lock.LOCKS, "broken.json"), b"{")
    began = time.monotonic()
    with exclusive(output, "other"):
        assert time.monotonic() - began > 1


def test_of_many_that_want_it_at_once_one_at_a_time_gets_it(output: str) -> None:
    start, inside, most, got = threading.Barrier(4), [0], [0], [0]
    guard = threading.Lock()

    def want() -> None:
        start.wait()
        for _ in range(2):
            try:
                with exclusive(output, "one of many"):
                    with guard:
                        inside[0] += 1
                        got[0] += 1
                        most[0] = max(most[0], inside[0])
                    time.sleep(0.05)
                    with guard:
                        inside[0] -= 1
            except BusyError:
                time.sleep(0.02)

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert got[0] >= 1
    assert entries(output) == []


def test_a_holder_learns_that_it_was_taken_for_dead(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "STALE", 60.0)
    with exclusive(output, "night") as held:
        held.require()
        storage.delete(storage.join(output, lock.LOCKS, entries(output)[0].rpartition("/")[2]))
        time.sleep(2 * lock.BEAT)
        assert entries(output) == []  # no beat brought it back
        with pytest.raises(StorageError, match="another one took the table over"):
            held.require()


def test_a_holder_beside_another_one_gives_up(output: str) -> None:
    """It stood still between its last look and its next write, and meanwhile another one took over."""
    with exclusive(output, "night") as held:
        put(output, elsewhere())
        with pytest.raises(StorageError, match="another one took the table over"):
            held.require()


def test_a_holder_that_stood_still_gives_no_more_signs_of_life(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with exclusive(output, "night") as held:
        real = lock._clock
        monkeypatch.setattr(lock, "_clock", lambda: real() + 100)
        with pytest.raises(StorageError, match="without a sign of life"):
            held.require()
        time.sleep(2 * lock.BEAT)
        before = held._written
        time.sleep(2 * lock.BEAT)
        assert held._written == before


def test_signs_of_life_are_given(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    real: Callable[..., None] = storage.write_bytes

    def write(uri: str, content: bytes) -> None:
        written.append(uri)
        real(uri, content)

    monkeypatch.setattr(storage, "write_bytes", write)
    with exclusive(output, "night"):
        time.sleep(5 * lock.BEAT)
    assert len(written) >= 4
