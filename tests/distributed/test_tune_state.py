"""Ray Tune's state as one object: trials, search and scheduler come back as they were at one moment."""

from __future__ import annotations

import io
import random
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from hisem import storage
from hisem.distributed import sweep
from hisem.distributed.sweep_file import SweepFile, require_holder
from hisem.distributed.trial import EPOCH
from hisem.distributed.tune_state import Halving, TuneState
from hisem.errors import StorageError, TrainingError
from hisem.training.presets import preset
from hisem.training.space import Space

TRIALS, EPOCHS = 12, 9
TRIALS_FILE = "experiment_state-2026-01-01_00-00-00.json"
FILES = {"experiment_state-{}.json": b"trials", "search_gen_state-{}.json": b"search", "searcher-state-{}.pkl": b"tpe"}


@dataclass(frozen=True)
class Trial:
    """What Ray Tune gives of a trial."""

    trial_id: str
    local_experiment_path: str


@dataclass(frozen=True)
class TuneTrial:
    """A trial that has ended."""

    trial_id: str
    status: str = "TERMINATED"


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The folder of a sweep on each kind of storage, with what Ray Tune writes there first."""
    root = f"{tmp_path}/storage" if request.param == "disk" else request.getfixturevalue("bucket")
    storage.write_bytes(f"{root}/sweep/tune/tuner.pkl", b"tuner")
    return f"{root}/sweep"


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    """Where Ray Tune writes beside the driver."""
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


def write(staging: Path, session: str, suffix: bytes = b"") -> None:
    """What Ray Tune writes every ten seconds."""
    for name, content in FILES.items():
        (staging / name.format(session)).write_bytes(content + suffix)


def unopposed() -> None:
    """No other driver has the sweep."""


def scheduler(state: TuneState) -> Halving:
    """A new one in a sweep of `state`."""
    Halving.state = state
    return Halving(time_attr=EPOCH, metric="metric", mode="max", max_t=EPOCHS, reduction_factor=3)


def test_a_sweep_continues_from_any_report_as_if_it_had_not_been_killed(folder: str, staging: Path) -> None:
    """The reports of twelve trials, one after the other and interleaved."""
    draw = random.Random(5)
    trials = [Trial(str(number), str(staging)) for number in range(TRIALS)]
    values = {(trial.trial_id, epoch): draw.random() for trial in trials for epoch in range(1, EPOCHS + 1)}
    for together, cut in ((1, 20), (3, 1), (3, 20), (3, 50)):
        groups = [trials[start : start + together] for start in range(0, TRIALS, together)]
        order = [(trial, epoch) for group in groups for epoch in range(1, EPOCHS + 1) for trial in group]
        whole = decisions(scheduler(TuneState(folder, unopposed)), trials, order, values)
        assert {"STOP", "CONTINUE"} <= set(whole.values())
        first = TuneState(folder, unopposed)
        begun = decisions(scheduler(first), trials, order[:cut], values)
        write(staging, "2026-01-01_00-00-00")
        first.take(trials)
        second = TuneState(folder, unopposed)
        assert second.restore()
        # Trials that ran report again what they had done.
        rest = decisions(scheduler(second), trials, order, values, stopped=ended(begun))
        assert begun | rest == whole


def ended(found: dict[tuple[str, int], str]) -> set[str]:
    """Trials that were stopped."""
    return {trial for (trial, _), decision in found.items() if decision == "STOP"}


def decisions(
    scheduler: Halving,
    trials: list[Trial],
    order: list[tuple[Trial, int]],
    values: dict[tuple[str, int], float],
    stopped: set[str] = frozenset(),  # type: ignore[assignment]
) -> dict[tuple[str, int], str]:
    """What becomes of the trials at their reports, of which a stopped one makes none."""
    found: dict[tuple[str, int], str] = {}
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    for trial, epoch in order:
        if trial.trial_id not in stopped | ended(found):
            result = {EPOCH: epoch, "metric": values[trial.trial_id, epoch]}
            found[trial.trial_id, epoch] = scheduler.on_trial_result(None, trial, result)
    return found


def test_the_files_come_back_alone_and_as_the_newest(folder: str, staging: Path) -> None:
    trial = Trial("a", str(staging))
    write(staging, "2026-01-01_00-00-00", b" of an earlier driver")
    write(staging, "2026-01-02_00-00-00")
    state = TuneState(folder, unopposed)
    scheduler(state).on_trial_add(None, trial)
    state.take([trial])
    storage.write_bytes(f"{folder}/tune/experiment_state-2026-01-03_00-00-00.json", b"half a co")
    storage.write_bytes(f"{folder}/tune/a/result.json", b"kept")

    assert TuneState(folder, unopposed).restore()
    left = {Path(path).name: path for path in storage.list_files(f"{folder}/tune")}
    assert left.keys() >= {"tuner.pkl", "result.json"}
    (session,) = {name[name.index("-20") + 1 : name.index(".")] for name in left if "-" in name}
    assert session > "2026-01-03"
    assert {name: storage.read_bytes(f"{folder}/tune/{name.format(session)}") for name in FILES} == FILES
    assert len(left) == len(FILES) + 2


def test_a_sweep_that_was_killed_before_its_first_state_begins_anew(folder: str, staging: Path) -> None:
    storage.write_bytes(f"{folder}/tune/tuner.pkl", b"half a tu")
    assert not TuneState(folder, unopposed).restore()
    assert storage.list_files(f"{folder}/tune") == []
    TuneState(folder, unopposed).take([])
    TuneState(folder, unopposed).take([Trial("a", str(staging))])  # Ray Tune has written nothing yet
    assert not storage.exists(f"{folder}/tune.zip")


def test_a_sweep_of_version_0_1_continues_with_what_ray_tune_copied(folder: str) -> None:
    storage.write_bytes(f"{folder}/tune/{TRIALS_FILE}", b"trials")
    before = storage.list_files(f"{folder}/tune")
    assert TuneState(folder, unopposed).restore()
    assert storage.list_files(f"{folder}/tune") == before


def test_a_storage_that_fails_for_a_while_is_told_and_the_next_state_counts(
    folder: str, staging: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("the disk is away.")

    trial, state = Trial("a", str(staging)), TuneState(folder, unopposed)
    scheduler(state).on_trial_add(None, trial)
    write(staging, "2026-01-01_00-00-00")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", fail)
        state.take([trial])
    assert "the disk is away" in caplog.text
    state.take([trial])  # of a moment that is over
    assert not storage.exists(f"{folder}/tune.zip")
    write(staging, "2026-01-01_00-00-00")
    state.take([trial])
    assert TuneState(folder, unopposed).restore()


def test_the_state_of_a_driver_that_took_the_sweep_over_stays(folder: str, staging: Path) -> None:
    before = SweepFile(folder, {}).started("0123abcd", "first")
    trial, state = Trial("a", str(staging)), TuneState(folder, lambda: require_holder(folder, "first"))
    write(staging, "2026-01-01_00-00-00")
    state.take([trial])
    assert storage.exists(f"{folder}/tune.zip")

    before.started("0123abcd", "second")
    storage.write_bytes(f"{folder}/tune.zip", WHOLE)
    write(staging, "2026-01-02_00-00-00")
    with pytest.raises(TrainingError, match="another command resumed this sweep"):
        state.take([trial])
    assert storage.read_bytes(f"{folder}/tune.zip") == WHOLE


@pytest.mark.parametrize("error", [False, True])
def test_a_trial_of_a_sweep_that_was_taken_over_is_not_ended(
    tmp_path: Path, error: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(sweep, "close_children", lambda *_, only: ended.append(only))
    monkeypatch.setattr(sweep, "error_of", lambda _: "")
    options = sweep.SweepOptions(Space("", "space.py", preset("demo")), "", str(tmp_path), "sweep", "")
    file = SweepFile(options.folder, {}).started("0123abcd", "first")
    listener = sweep._Listener(options, 2, lambda: require_holder(options.folder, "first"))
    trials = [TuneTrial("a"), TuneTrial("b")]
    listener.over(trials, trials[0], error)
    file.started("0123abcd", "second")
    files = storage.list_files(options.folder)
    with pytest.raises(TrainingError, match="another command resumed this sweep"):
        listener.over(trials, trials[1], error)
    assert ended == ["a"]
    assert storage.list_files(options.folder) == files


def archive(*names: str) -> bytes:
    """A state of some files, as it is written."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as made:
        for name in names:
            made.writestr(name, name * 20)
    return content.getvalue()


WHOLE = archive("tuner.pkl", "experiment_state-.json", "rungs.pkl")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        archive(),
        archive("tuner.pkl"),
        archive("experiment_state-.json"),
        archive("tuner.pkl", "experiment_state-.json", "../escaped.json"),
    ],
    ids=range(6),
)
def test_a_damaged_state_is_named(content: bytes, tmp_path: Path) -> None:
    storage.write_bytes(f"{tmp_path}/sweep/tune.zip", content)
    with pytest.raises(StorageError, match=r"tune\.zip"):
        TuneState(f"{tmp_path}/sweep", unopposed).restore()
    assert {path.name for path in tmp_path.rglob("*.json")} == set()


def test_no_damage_raises_anything_else(tmp_path: Path) -> None:
    """Cut at every length, and with each byte another one: refused, or the same files."""
    draw = random.Random(3)
    cut = [WHOLE[:length] for length in range(len(WHOLE))]
    other = [WHOLE[:n] + bytes([WHOLE[n] ^ draw.randrange(1, 256)]) + WHOLE[n + 1 :] for n in range(len(WHOLE))]
    refused = 0
    for content in [*cut, *other]:
        (tmp_path / "tune.zip").write_bytes(content)
        try:
            TuneState(str(tmp_path), unopposed).restore()
        except StorageError:
            refused += 1
            continue
        assert (tmp_path / "tune" / "tuner.pkl").read_text() == "tuner.pkl" * 20
        (state,) = (tmp_path / "tune").glob("experiment_state-2*.json")
        assert state.read_text() == "experiment_state-.json" * 20
    assert refused > len(cut)
