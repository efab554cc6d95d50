"""A sweep whose trials compute their metric instead of training: python light_sweep.py FOLDER.

Prints what was drawn for each trial and the epoch at which it ended, as JSON, last.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hisem.distributed import session, sweep
from hisem.distributed.trial import EPOCH, TrialOrders, TrialRun, drawn
from hisem.training.execution import Execution
from hisem.training.presets import preset
from hisem.training.search import Search
from hisem.training.space import Space

EPOCHS, TRIALS = 9, 9
SPACE = """
def space(trial, base):
    return {"training": {"learning_rate": trial.suggest_float("rate", 1e-5, 1e-2, log=True)}}
"""


def metric(rate: float, epoch: int) -> float:
    """Grows by the epoch; the order of two rates is another one after the third than after the first."""
    return 1 - math.exp(-epoch * rate * 300) + 0.3 * math.sin(1e5 * rate + (epoch > 2))


class LightTrial(TrialRun):
    """Reports an epoch in each step, from the first on whenever it starts."""

    def setup(self, config: dict[str, Any], orders: TrialOrders) -> None:
        self._rate, self._done = float(drawn(config)[0]["rate"]), 0
        self._die = Path(orders.folder) / "die"

    def step(self) -> dict[str, Any]:
        time.sleep(0.2)
        if self._die.exists():
            self._die.unlink()
            take_memory()
        self._done += 1
        return {EPOCH: self._done, "val_bleu_4": metric(self._rate, self._done), "done": self._done == EPOCHS}

    def cleanup(self) -> None:
        pass


class Listener(sweep._Listener):
    """Keeps at which epoch the trials ended."""

    epochs: ClassVar[dict[str, int]] = {}

    def end(self, trials: Sequence[Any]) -> None:
        self.epochs.update({trial.trial_id: trial.last_result.get(EPOCH, 0) for trial in trials})
        super().end(trials)


def take_memory() -> None:
    """Take memory until Ray's memory monitor ends this process."""
    taken = []
    while True:
        taken.append(b"1" * 64 * 2**20)
        time.sleep(0.05)


def main(folder: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    sweep.TrialRun = LightTrial  # type: ignore[misc,attr-defined]
    sweep._Listener = Listener  # type: ignore[misc]
    base = preset("demo", {"training": {"epochs": EPOCHS, "metric": "bleu_4"}})
    search = Search(TRIALS, concurrent=1, seed=3)
    options = sweep.SweepOptions(Space(SPACE, "space.py", base), folder, folder, "light", "", search)
    sweep.close_children = lambda *_, **__: None  # type: ignore[attr-defined]
    with session.cluster():
        orders = TrialOrders(options.space, folder, options.folder, "", "", Execution(workers=1))
        ended = sweep._search(options, None, 1, orders, lambda: None)
    found = [[one.parameters["rate"], Listener.epochs[one.name], one.error] for one in ended]
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
