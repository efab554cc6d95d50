"""Kill or suspend the captioning job again and again, and check its table: each tile one row, and no reader sees worse.

    python -m tests.faults.kill_captioning --times 200 --output DIR [--cluster]

`--output` is a folder, or a URI in a bucket whose server the environment names. Each kill ends the driver with all that
it has started, a captioner, or the driver at the moment when the first file of a publication appears; with `--cluster`
the job runs on a Ray cluster, which loses a node, too, and gets another. With `--suspend` some moments suspend the
driver instead: another run waits a minute, takes over and works to its end, and then the first one is resumed. The
moments are drawn from `--seed`.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow.dataset as ds
import torch

from hisem import storage
from hisem.archive.catalogue import read_catalogue, write_catalogue
from hisem.archive.synthetic import SyntheticConfig, generate
from hisem.captions import staging
from hisem.model.hisem import HiSem
from hisem.text.vocabulary import SPECIALS, Vocabulary
from hisem.training.presets import preset
from tests.distributed.conftest import TILE, TINY
from tests.faults.processes import processes

ROOT = Path(__file__).parents[2]
Kind = Literal["driver", "captioner", "node", "publishing", "suspended", "suspended publishing"]
COLUMNS = ("tile_id", "model_digest", "status", "caption", "captioned_at")


def make_inputs(folder: Path, scenes: int = 6) -> tuple[str, str]:
    """A catalogue of synthetic pairs, one of which is missing and one cut short, and a bundle of a random model."""
    config = SyntheticConfig(scenes=scenes, tile_size=TILE, scene_tiles=8, val_share=0.17, test_share=0.17)
    generate(config, str(folder / "archive"))
    catalogue = read_catalogue(str(folder / "archive" / "catalogue.parquet"))
    rows = catalogue.to_pylist()
    rows[0]["after"] = [str(folder / "nowhere.tif")]
    whole = Path(rows[1]["after"][0]).read_bytes()
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])
    rows[1]["after"] = [str(folder / "cut.tif")]
    path = str(folder / "catalogue.parquet")
    write_catalogue(catalogue.from_pylist(rows, schema=catalogue.schema), path)
    torch.manual_seed(0)
    words = Vocabulary((*SPECIALS, *(f"w{number}" for number in range(20))))
    HiSem(preset("demo", TINY).model, words, pretrained=False).eval().save_pretrained(folder / "bundle")
    return path, str(folder / "bundle")


class Reader(threading.Thread):
    """Reads the published table over and over, as one who knows nothing of the job, and remembers what it saw wrong."""

    def __init__(self, output: str) -> None:
        super().__init__(daemon=True)
        self.output, self.looks, self.most = output, 0, 0
        self.wrong: list[str] = []
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.05):
            self.look()

    def look(self) -> None:
        """One look at the whole table."""
        try:
            found = rows_of(self.output)
        except Exception as error:  # noqa: BLE001 - whatever a reader meets is what is looked for
            self.wrong.append(f"{type(error).__name__}: {error}")
            return
        doubled = [key for key, count in Counter((r["tile_id"], r["model_digest"]) for r in found).items() if count > 1]
        if doubled:
            self.wrong.append(f"{len(doubled)} keys are there more than once, {doubled[0]} for one")
        if len(found) < self.most:
            self.wrong.append(f"{self.most - len(found)} rows are gone")
        self.looks, self.most = self.looks + 1, max(self.most, len(found))

    def end(self) -> None:
        """Stop, after a last look."""
        self._over.set()
        self.join()
        self.look()


def rows_of(output: str) -> list[dict[str, Any]]:
    """The published rows, by pyarrow's own dataset."""
    fs, path = storage.filesystem(storage.join(output, "captions"))
    if not storage.list_files(storage.join(output, "captions"), ".parquet"):
        return []
    return ds.dataset(path, format="parquet", filesystem=fs).to_table(list(COLUMNS)).to_pylist()


def staged(output: str) -> int:
    """Rows that are put aside."""
    job = staging.open_job(output)
    return 0 if job is None else len(staging.staged_rows(output, job, ["tile_id", "model_digest", "captioned_at"]))


@dataclass
class Kills:
    """A job on one catalogue that is killed or suspended; `counts` are these moments by kind."""

    catalogue: str
    bundle: str
    scratch: Path
    variables: dict[str, str] = field(default_factory=dict)
    kill_node: Callable[[], bool] | None = None
    """Take a node away on which a captioner is at work; False where there is none yet."""
    captioners: int = 1
    counts: Counter[str] = field(default_factory=Counter)

    def start(self, output: str, name: str = "log") -> subprocess.Popen[bytes]:
        """The job, in a process group of its own."""
        command = [sys.executable, str(ROOT / "pipelines" / "caption.py"), "--catalog", self.catalogue]
        command += [
            "--model",
            self.bundle,
            "--output",
            output,
            "--tile-size",
            str(TILE),
            "--batch-size",
            "4",
            "--captioners",
            str(self.captioners),
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HISEM_STORAGE": str(self.scratch / "home")}
        with (self.scratch / name).open("ab") as log:
            return subprocess.Popen(
                command, env=environment | self.variables, stdout=log, stderr=log, start_new_session=True
            )

    def finish(self, output: str) -> str:
        """Run the job to its end; what it printed. Failed tiles make that end with 3, none to do with 0."""
        (self.scratch / "log").write_bytes(b"")
        code = self.start(output).wait()
        text = (self.scratch / "log").read_text()
        assert code in (0, 3), text
        return text

    def kill(self, output: str, kind: Kind, after: float) -> bool:
        """Start the job, and kill `after` so many seconds, at sight of a published file at the latest for a driver.

        True where it was killed before it had ended; a captioner or a node that dies ends no job, nor makes it fail.
        """
        there = len(storage.list_files(storage.join(output, "captions")))
        process, until = self.start(output), time.monotonic() + after
        while process.poll() is None:
            if kind == "publishing":
                if len(storage.list_files(storage.join(output, "captions"))) > there:
                    break
            elif time.monotonic() > until and self._hit(kind):
                self.counts[kind] += 1
                assert process.wait() in (0, 3), (self.scratch / "log").read_text()
                return False
            elif kind == "driver" and time.monotonic() > until:
                break
            time.sleep(0.001 if kind == "publishing" else 0.02)
        killed = process.poll() is None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert killed or process.returncode in (0, 3), (self.scratch / "log").read_text()
        self.counts[kind] += killed
        return killed

    def suspend(self, output: str, kind: Kind, after: float) -> bool:
        """Suspend the job after so many seconds, or at sight of a published file; resume it when another has ended.

        True where it was suspended before it had ended; then the table is finished. The resumed one must exit with an
        error if it was taken over, and well if it did not hold the table or held it in the middle of a write.
        """
        there = len(storage.list_files(storage.join(output, "captions")))
        log = self.scratch / "suspended"
        log.write_bytes(b"")
        process, until = self.start(output, "suspended"), time.monotonic() + after
        while process.poll() is None:
            if "publishing" in kind:
                if len(storage.list_files(storage.join(output, "captions"))) > there:
                    break
            elif time.monotonic() > until:
                break
            time.sleep(0.001 if "publishing" in kind else 0.02)
        if process.poll() is not None:
            assert process.returncode in (0, 3), log.read_text()
            return False
        os.kill(process.pid, signal.SIGSTOP)
        (self.scratch / "log").write_bytes(b"")
        code = self.start(output).wait()
        text = (self.scratch / "log").read_text()
        os.kill(process.pid, signal.SIGCONT)
        first = process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what is left of its Ray
        if code == 1:  # it stands still in the middle of a write
            assert "suspended" in text, text
            assert first in (0, 3), log.read_text()
        elif "taking over" in text:
            assert code in (0, 3), text
            assert first == 1, log.read_text()
            assert "another one took over" in log.read_text(), log.read_text()
        else:
            assert code in (0, 3), text
            assert first in (0, 1, 3), log.read_text()
        self.counts[f"{kind}, taken over" if "taking over" in text else kind] += 1
        return True

    def _hit(self, kind: Kind) -> bool:
        """Kill a captioner or a node; False where there is none yet."""
        if kind == "node" and self.kill_node:
            return self.kill_node()
        if kind == "captioner" and (found := captioners()):
            os.kill(found[0], signal.SIGKILL)
            return True
        return False


def captioners() -> list[int]:
    """Numbers of the processes that caption."""
    return processes(r"ray::.*ReadingActor")


def lose_node(cluster: Any) -> bool:
    """Kill a node of a `ray.cluster_utils.Cluster` on which a captioner is at work; False where there is none."""
    for node in list(cluster.worker_nodes):
        if processes(r"ray::.*ReadingActor.*submit", node.all_processes["raylet"][0].process.pid):
            cluster.remove_node(node, allow_graceful=False)
            return True
    return False


@contextmanager
def nodes(kills: Kills) -> Iterator[None]:
    """A cluster for the job: a head that runs nothing, and one node, in whose place comes another when it is lost."""
    from ray.cluster_utils import Cluster

    settings = {"RAY_AUTH_MODE": "disabled", "RAY_health_check_period_ms": "1000"}
    os.environ.update(settings | {"RAY_health_check_failure_threshold": "3"})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 150 * 2**20})
    add = partial(cluster.add_node, num_cpus=2, object_store_memory=150 * 2**20)
    add()
    kills.variables |= {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
    kills.kill_node = lambda: lose_node(cluster) and bool(add())
    yield
    cluster.shutdown()


Truth = dict[str, tuple[str, str | None]]
"""Status and caption of each tile."""


def undisturbed(kills: Kills, root: str, say: Callable[[str], None]) -> tuple[Truth, float]:
    """The table of a run that nobody kills, and its seconds."""
    began = time.monotonic()
    kills.finish(storage.join(root, "whole"))
    whole = {row["tile_id"]: (row["status"], row["caption"]) for row in rows_of(storage.join(root, "whole"))}
    say(f"undisturbed: {len(whole)} rows in {time.monotonic() - began:.1f} s")
    return whole, time.monotonic() - began


def kill_often(
    kills: Kills,
    root: str,
    times: int,
    seed: int,
    kinds: list[Kind],
    truth: tuple[Truth, float],
    say: Callable[[str], None],
) -> None:
    """Kill the job so many times, on one output after another as each is done, and hold every output to the truth.

    Raises `AssertionError` where a row differs, is missing or doubled, a reader saw worse, or work was done again.
    """
    whole, longest = truth
    draw, done, number = random.Random(seed), 0, 0
    while done < times:
        output = storage.join(root, f"killed-{number}")
        reader = Reader(output)
        reader.start()
        ended = False
        while not ended and done < times:
            kind = draw.choice(kinds)
            if "suspended" in kind:
                kills.suspend(output, kind, draw.uniform(0, longest))
                ended = True
            else:
                ended = not kills.kill(output, kind, draw.uniform(0, longest))
            done += 1
            say(f"{done}: {kind}, {staged(output)} rows aside, {len(rows_of(output))} published")
        kept = staged(output)
        published = len(rows_of(output))
        text = "" if ended else kills.finish(output)
        for line in re.findall(r"captioned \d+ of (\d+) tiles", text):
            assert int(line) <= len(whole) - max(kept, published), f"work was done again: {text}"
        reader.end()
        assert not reader.wrong, reader.wrong[:3]
        found = {row["tile_id"]: (row["status"], row["caption"]) for row in rows_of(output)}
        others = sorted(tile for tile in whole.keys() | found.keys() if found.get(tile) != whole.get(tile))
        assert not others, (
            f"{output}: {len(others)} rows differ, {[(t, found.get(t), whole.get(t)) for t in others[:3]]}"
        )
        say(f"output {number}: {len(found)} rows as they should be, {reader.looks} looks of a reader")
        number += 1
    say(f"kills: {dict(kills.counts)}")


def main() -> None:
    """The command."""
    import argparse
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--output", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cluster", action="store_true")
    parser.add_argument("--suspend", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        catalogue, bundle = make_inputs(Path(folder))
        kinds: list[Kind] = ["driver", "driver", "captioner", "publishing"]
        kills = Kills(catalogue, bundle, Path(folder))
        with nodes(kills) if given.cluster else nullcontext():
            truth = undisturbed(kills, given.output, print)
            kinds += ["node"] if given.cluster else []
            kinds += ["suspended", "suspended publishing"] if given.suspend else []
            kill_often(kills, given.output, given.times, given.seed, kinds, truth, print)


if __name__ == "__main__":
    main()
