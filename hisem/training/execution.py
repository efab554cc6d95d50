"""How a training run is executed: processes, what they reserve, checkpoints, and what it survives."""

from __future__ import annotations

from dataclasses import dataclass

from hisem.errors import ConfigError


@dataclass(frozen=True)
class Execution:
    """What does not decide what is learned: a run may go on with other values."""

    workers: int = 2
    """Training processes. The batch is that of all of them together."""
    min_workers: int | None = None
    """Fewest processes to go on with while the cluster has no room for more; without it all are waited for."""
    gpu: bool = False
    """Give each worker one GPU."""
    cpus_per_worker: float | None = None
    """CPUs that a worker reserves (default: one beside a GPU, else half of its part of the cluster; the other half
    reads the data)."""
    keep: int = 1
    """Best checkpoints to keep, beside the last."""
    checkpoint_minutes: float = 10.0
    """Time between checkpoints inside an epoch; there is one at the end of each, too."""
    storage_minutes: float = 15.0
    """How long a storage that fails is tried again before the run ends, at most 25."""
    max_failures: int = 5
    """How often in a row the workers may fail without a checkpoint between before the run ends."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers is {self.workers}: 1 or more.")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ConfigError(f"min_workers is {self.min_workers}: 1 to {self.workers}, which is workers.")
        if self.cpus_per_worker is not None and not self.cpus_per_worker > 0:
            raise ConfigError(f"cpus_per_worker is {self.cpus_per_worker}: above 0.")
        if self.keep < 1:
            raise ConfigError(f"keep is {self.keep}: 1 or more.")
        if not self.checkpoint_minutes > 0:
            raise ConfigError(f"checkpoint_minutes is {self.checkpoint_minutes}: above 0.")
        if not 0 <= self.storage_minutes <= 25:  # workers wait half an hour for each other
            raise ConfigError(f"storage_minutes is {self.storage_minutes}: 0 to 25.")
        if self.max_failures < 0:
            raise ConfigError(f"max_failures is {self.max_failures}: 0 or more.")

    @property
    def least(self) -> int:
        """Workers without which nothing starts."""
        return self.min_workers or self.workers
