"""One writer at a time: the holder is named, a dead one is found out, and a run that was taken over writes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError

from hisem import conditional, storage
from hisem.captions import holder, lock
from hisem.captions.holder import Entry
from hisem.captions.lock import WRITER, exclusive
from hisem.conditional import files_of
from hisem.errors import BusyError, ConflictError, StorageError, TakenOverError

HOLDING = (
    "import sys, time; from hisem.captions.lock import exclusive\n"
    "with exclusive(sys.argv[1], 'night'):\n    print('held', flush=True); time.sleep(60)"
)


@pytest.fixture(params=["folder", "bucket"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(tmp_path / "out") if request.param == "folder" else storage.join(request.getfixturevalue("bucket"), "out")
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.3)
    monkeypatch.setattr(lock, "STALE", 2.0)  # a busy machine stalls
    monkeypatch.setattr(lock, "LOOK", 0.05)


def elsewhere(**over: Any) -> Entry:
    """A holder on another machine."""
    return replace(Entry("far", "another machine", 4711, "1", "2026-01-01T00:00:00+00:00", "night", "token"), **over)


def put(output: str, content: Entry | bytes, name: str = WRITER) -> None:
    encoded = content if isinstance(content, bytes) else json.dumps(asdict(content)).encode()
    storage.write_bytes(storage.join(output, name), encoded)


def holder_of(output: str) -> Entry | None:
    there = files_of(output).read(WRITER)
    return holder.holder_in(there) if there else None


@contextmanager
def process(output: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the output."""
    started = subprocess.Popen([sys.executable, "-c", HOLDING, output], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "held\n"
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def test_a_second_run_is_refused_with_the_holders_name_until_the_first_ends(output: str) -> None:
    with exclusive(output, "captioning of a.parquet"):
        message = r"held by captioning of a.parquet \(process \d+ on .*, since 20"
        with pytest.raises(BusyError, match=message), exclusive(output, "captioning of b.parquet"):
            pass
    assert holder_of(output) is None
    with exclusive(output, "captioning of b.parquet"):
        pass


def test_a_holder_on_this_machine_that_was_killed_is_found_out_at_once(output: str) -> None:
    with process(output) as first:
        with pytest.raises(BusyError, match=f"process {first.pid} on "), exclusive(output, "other"):
            pass
        first.kill()
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie until it is waited for
        began = time.monotonic()
        with exclusive(output, "other"):
            assert time.monotonic() - began < lock.STALE


def test_a_suspended_holder_on_this_machine_is_taken_over_and_loses_its_writes(output: str) -> None:
    code = HOLDING.replace("'night'):", "'night') as held:").replace("; time.sleep(60)", "; sys.stdin.readline()")
    code += "\n    held.write('x', b'', None)"
    first = subprocess.Popen(
        [sys.executable, "-c", code, output], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert first.stdout is not None
    assert first.stdout.readline() == b"held\n"
    os.kill(first.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
    began = time.monotonic()
    with exclusive(output, "other") as mine:
        assert time.monotonic() - began > lock.STALE
        os.kill(first.pid, signal.SIGCONT)
        _, errors = first.communicate(b"\n", timeout=60)
        assert first.returncode == 1
        assert b"TakenOverError" in errors
        assert not storage.exists(storage.join(output, "x"))
        mine.require()


@pytest.mark.parametrize("age", [0, -7200])
def test_a_silent_holder_on_another_machine_is_taken_over_for_any_file_time(
    output: str, age: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE", 0.5)
    put(output, elsewhere())
    if not storage.is_remote(output):
        os.utime(Path(output, WRITER), (time.time() - age, time.time() - age))
    began = time.monotonic()
    with exclusive(output, "other") as mine:
        assert lock.STALE < time.monotonic() - began < 60 * lock.STALE
        mine.require()


def test_a_holder_on_another_machine_that_gives_signs_of_life_is_left_alone(output: str) -> None:
    over = threading.Event()
    put(output, elsewhere())

    def beat() -> None:
        number = 0
        while not over.wait(0.5):
            put(output, elsewhere(beat=(number := number + 1)))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(BusyError, match=r"held by night \(process 4711 on far"), exclusive(output, "other"):
            pass
    finally:
        over.set()
        thread.join()
    there = holder_of(output)
    assert there is not None
    assert there.token == "token"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"[" * 10_000, b'{"pid": "../../1"}'], ids=lambda content: repr(content[:9])
)
def test_a_damaged_lock_is_not_trusted_to_be_dead_nor_waited_for_without_limit(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE", 0.5)
    put(str(tmp_path), content)
    began = time.monotonic()
    with exclusive(str(tmp_path), "other"):
        assert time.monotonic() - began > lock.STALE


def test_locks_of_earlier_versions(output: str) -> None:
    """They are files of their own; one of a process that has exited is removed, one of another machine if silent."""
    old = Entry("here", holder._machine(), 2**22 + 1, "1", "2026-01-01T00:00:00+00:00", "night")
    files: list[Entry | bytes] = [old, elsewhere(), b"{"]
    for number, entry in enumerate(files):
        content = entry if isinstance(entry, bytes) else json.dumps({**asdict(entry), "holds": number > 0}).encode()
        put(output, content, f"_locks/2026-{number}.json")
    with exclusive(output, "other"):
        assert [Path(file).name for file in storage.list_files(storage.join(output, "_locks"))] == ["writer.json"]
    alive = replace(old, pid=os.getpid(), born=holder.born(os.getpid()))
    put(output, alive, "_locks/2026-1.json")
    with pytest.raises(BusyError, match="held by night"), exclusive(output, "other"):
        pass
    assert holder_of(output) is None


def test_of_many_that_want_it_at_once_one_at_a_time_gets_it(output: str) -> None:
    start, inside, most, got = threading.Barrier(4), [0], [0], [0]
    guard = threading.Lock()

    def want() -> None:
        start.wait()
        for _ in range(3):
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
    assert holder_of(output) is None


def test_a_holder_that_was_taken_over_notices_and_leaves_the_lock_alone(output: str) -> None:
    with exclusive(output, "night") as held:
        held.require()
        held.write("a", b"1", None)
        put(output, elsewhere())
        for act in (
            held.require,
            lambda: held.write("b", b"", None),
            lambda: held.update("a", b"2"),
            lambda: held.remove("a", held.read("a").version, b""),  # type: ignore[union-attr]
        ):
            with pytest.raises(TakenOverError, match="another one took over: night"):
                act()
        time.sleep(3 * lock.BEAT)
    assert holder_of(output) == elsewhere()
    assert storage.read_bytes(storage.join(output, "a")) == b"1"
    assert not storage.exists(storage.join(output, "b"))


def test_another_error_of_a_run_that_was_taken_over_becomes_that(output: str) -> None:
    def fail(folder: str, *, taken: bool) -> None:
        with exclusive(folder, "night"):
            if taken:
                put(folder, elsewhere())
            raise RuntimeError("the cluster forgot this driver")

    with pytest.raises(TakenOverError):
        fail(output, taken=True)
    with pytest.raises(RuntimeError):
        fail(f"{output}2", taken=False)


def test_writes_hold_to_the_version_that_was_read(output: str) -> None:
    with exclusive(output, "night") as held:
        held.write("folder/a.bin", b"one", None)
        held.write("folder/a.bin", b"one", None)  # as an attempt whose answer was lost
        with pytest.raises(ConflictError):
            held.write("folder/a.bin", b"two", None)
        first = held.read("folder/a.bin")
        assert first is not None
        held.write("folder/a.bin", b"two", first.version)
        with pytest.raises(ConflictError):
            held.write("folder/a.bin", b"three", first.version)
        with pytest.raises(ConflictError):
            held.remove("folder/a.bin", first.version, b"")
        second = held.read("folder/a.bin")
        assert second is not None
        assert second.content == b"two"
        held.remove("folder/a.bin", second.version, b"gone")
        left = held.read("folder/a.bin")
        assert (left and left.content) == (b"gone" if storage.is_remote(output) else None)


def test_a_process_suspended_in_the_middle_of_a_write_blocks_a_takeover_for_a_limited_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditional, "GUARD_SECONDS", 1.0)
    put(str(tmp_path), elsewhere())
    with conditional.LocalFiles(str(tmp_path))._guarded():
        began = time.monotonic()
        with (
            pytest.raises(BusyError, match=r"held by night \(process 4711 .* suspended"),
            exclusive(str(tmp_path), "x"),
        ):
            pass
        assert time.monotonic() - began < 10 * lock.STALE
    with exclusive(str(tmp_path), "x"):
        pass


def test_heartbeats_change_the_file(output: str) -> None:
    with exclusive(output, "night"):
        first = holder_of(output)
        time.sleep(5 * lock.BEAT)
        second = holder_of(output)
    assert first is not None
    assert second is not None
    assert second.beat > first.beat


@pytest.mark.parametrize("ignored", ["If-None-Match", "If-Match", "both"])
def test_a_store_that_ignores_conditions_is_named(
    bucket: str, ignored: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = obstore.put

    def put(*args: Any, mode: Any, **more: Any) -> Any:
        condition = "If-None-Match" if mode == "create" else "If-Match"
        return real(*args, mode="overwrite" if ignored in (condition, "both") else mode, **more)

    monkeypatch.setattr(obstore, "put", put)
    with exclusive(bucket, "night") as held:
        assert "no conditional writes" in caplog.text
        held.write("a", b"", None)
        real_clock = holder.clock
        monkeypatch.setattr(lock, "clock", lambda: real_clock() + 100)  # there a silence alone ends the right to write
        with pytest.raises(TakenOverError):
            held.write("b", b"", None)


def test_a_store_that_refuses_is_an_error_with_the_reason(
    bucket: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hisem import object_files

    monkeypatch.setitem(object_files.RETRY, "max_retries", 1)
    s3_server.fail("_locks", 403)
    with pytest.raises(StorageError, match=r"_locks/writer.json: cannot be .*Access is refused"):
        lock.Lock(bucket, holder.myself("night")).acquire()
    s3_server.fail("_locks", 503)
    with pytest.raises(StorageError, match=r"The server is failing"):
        lock.Lock(bucket, holder.myself("night")).acquire()


def test_keys_are_those_of_arrow(bucket: str) -> None:
    for name in ("a b/é.json", "100%/x.json", "acquired=2024-01-01/model=1 +/p.parquet", "a#b"):
        with exclusive(storage.join(bucket, "o ü%20"), "night") as held:
            held.write(name, name.encode(), None)
        assert storage.read_bytes(storage.join(bucket, "o ü%20", name)) == name.encode()


def test_credentials_come_from_where_arrow_finds_them(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    profile = tmp_path / "credentials"
    profile.write_text("[mine]\naws_access_key_id = wrong\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    with pytest.raises(StorageError, match="Access is refused"):  # of a key that the server refuses
        lock.Lock(bucket, holder.myself("night")).acquire()
    profile.write_text(profile.read_text().replace("wrong", "testing"))
    with exclusive(bucket, "night") as held:
        held.write("a", b"1", None)
    assert storage.read_bytes(f"{bucket}/a") == b"1"
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    with exclusive(bucket, "night"):
        pass


def test_a_request_that_was_cut_off_by_a_suspension_is_sent_again(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time for retries passed while the process was suspended."""
    monkeypatch.setattr("hisem.object_files.SUSPENDED_SECONDS", 0.0)
    for deed in ("get", "put"):
        failures: list[Exception] = [GenericError("error sending request")]
        real = getattr(obstore, deed)

        def cut(*args: Any, real: Any = real, failures: list[Exception] = failures, **more: Any) -> Any:
            if failures:
                raise failures.pop()
            return real(*args, **more)

        with exclusive(bucket, "night") as held, monkeypatch.context() as patch:
            patch.setattr(obstore, deed, cut)
            held.write(deed, b"1", None)
        assert storage.read_bytes(f"{bucket}/{deed}") == b"1"
        assert failures == []


def test_a_holder_that_ended_meanwhile_is_named(output: str) -> None:
    with exclusive(output, "night") as held:
        put(output, elsewhere(what="another run", released=True))
        with pytest.raises(TakenOverError, match="another run"):
            held.require()
