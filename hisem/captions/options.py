"""How an archive is captioned, as a person says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from hisem.captions.staging import Redo
from hisem.errors import ConfigError
from hisem.ranges import Beam, Cpus, Processes, Range, require_ranges


@dataclass(frozen=True)
class Captioning:
    """How captions are made, and with what."""

    beam: Beam = 1
    """Beam width; 1 is greedy. A wider beam also gives each tile a second caption."""
    batch_size: Annotated[int, Range(1, 4096)] | None = None
    """Tiles per forward pass (default: 8, with --gpu 128)."""
    captioners: Processes | None = None
    """Captioning actors (default: as many as the cluster has GPUs, or places for --cpus)."""
    cpus: Cpus = 1
    """CPUs, and threads, of a captioner."""
    gpu: bool = False
    """Give each captioner one GPU."""
    precision: Literal["float32", "bf16"] = "float32"
    """Arithmetic: bf16 for a GPU."""
    compile: bool = False
    """Compile the model: faster after a first batch that takes minutes."""
    sure_unchanged: Annotated[float, Range(0, 1, above=True)] | None = None
    """Tiles whose p(changed) is below skip the decoder and get the sentence for unchanged tiles (default: none do)."""
    recaption: bool = False
    """Caption all tiles of the catalogue again; their rows are replaced."""
    retry_failed: bool = False
    """Caption again only those tiles of the catalogue that have failed."""
    page: bool = True
    """Write a page of the run with pictures of changed tiles, to OUTPUT/pages."""

    def __post_init__(self) -> None:
        require_ranges(self)
        if self.recaption and self.retry_failed:
            raise ConfigError("recaption captions all tiles again, retry_failed only failed ones: give one of them.")

    @property
    def batch(self) -> int:
        """Tiles per forward pass."""
        return self.batch_size or (128 if self.gpu else 8)

    def deciding(self) -> dict[str, object]:
        """Return the options that differ from the defaults and decide what a caption is, by their flags."""
        names = ("beam", "precision", "sure_unchanged")
        values = {f"--{name.replace('_', '-')}": getattr(self, name) for name in names}
        return {flag: value for flag, value in values.items() if value != getattr(GREEDY, flag[2:].replace("-", "_"))}

    @property
    def redo(self) -> Redo:
        """Which tiles that have a row are captioned again."""
        return "all" if self.recaption else "failed" if self.retry_failed else "nothing"


GREEDY = Captioning()
