"""How a training run is executed: processes, what they reserve, checkpoints, and what it survives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from hisem.errors import ConfigError
from hisem.ranges import Processes, Range, require_ranges


@dataclass(frozen=True)
class Execution:
    """What does not decide what is learned: a run may go on with other values."""

    workers: Processes = 2
    """Training processes. The batch is that of all of them together."""
    min_workers: Processes | None = None
    """Fewest processes to go on with while the cluster has no room for more; without it all are waited for."""
    gpu: bool = False
    """Give each worker one GPU."""
    cpus_per_worker: Annotated[float, Range(0, 1024, above=True)] | None = None
    """CPUs that a worker reserves (default: one beside a GPU, else half of its part of the cluster; the other half
    reads the data)."""
    keep: Annotated[int, Range(1, 10_000)] = 1
    """Best checkpoints to keep, beside the last."""
    checkpoint_minutes: Annotated[float, Range(0, 100_000, above=True)] = 10.0
    """Time between checkpoints inside an epoch; there is one at the end of each, too."""
    storage_minutes: Annotated[float, Range(0, 25)] = 15.0
    """How long a storage that fails is tried again before the run ends, at most 25: workers wait half
    an hour for each other."""
    max_failures: Annotated[int, Range(0, 10_000)] = 5
    """How often in a row the workers may fail without a checkpoint between before the run ends."""

    def __post_init__(self) -> None:
        require_ranges(self)
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ConfigError(f"min_workers is {self.min_workers}: 1 to {self.workers}, which is workers.")

    @property
    def least(self) -> int:
        """Workers without which nothing starts."""
        return self.min_workers or self.workers
