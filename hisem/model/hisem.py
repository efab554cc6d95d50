"""HiSem: two images in, a sentence about what changed out.

Shapes: B pairs, H x W pixels of a tile, h x w pixels of the backbone's input, L tokens, D channels,
k experts a token, T caption positions, V words.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hisem.errors import ConfigError
from hisem.model import bundle
from hisem.model.backbone import Backbone, BackboneConfig
from hisem.model.bdam import BDAMConfig
from hisem.model.change import ChangeEncoder, ChangeOutput
from hisem.model.decoder import Decoder, DecoderConfig
from hisem.model.generation import Hypothesis, generate
from hisem.model.hasd import HASDConfig
from hisem.model.preprocess import Preprocess
from hisem.text.vocabulary import UNCHANGED_SENTENCE, Vocabulary


@dataclass(frozen=True)
class HiSemConfig:
    """The whole model. Defaults are the paper's."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    bdam: BDAMConfig = field(default_factory=BDAMConfig)
    hasd: HASDConfig = field(default_factory=HASDConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


class HiSemOutput(NamedTuple):
    """`logits` B T V; `change_logits` B 2 or None without a router; scalar `balance_loss`."""

    logits: Tensor
    change_logits: Tensor | None
    balance_loss: Tensor


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where the model saw change in one tile, over its token grid, row 0 the uppermost.

    `change_map`: float32, rows x columns, 0 and up: the discrepancy of the last BDAM layer (section 2's c),
    averaged over channels; without BDAM the difference of the dates' tokens. Its scale is the model's own: compare
    tiles of one model. `experts`: int64,
    rows x columns x k, the experts of each token, best first; None where the pair took the unchanged path.
    """

    change_map: npt.NDArray[np.float32]
    experts: npt.NDArray[np.int64] | None


@dataclass(frozen=True)
class Caption:
    """One tile's sentence. `change_probability` is the image router's, null for a model without one; then
    `changed` says whether the sentence differs from the canonical one for unchanged pairs. `logprob` is
    the sum over the words and END, None where the decoder was not asked. `second` is the second-best sentence of a
    beam above 1, None where there is none. `explanation` is there where it was asked for.
    """

    text: str
    changed: bool
    change_probability: float | None
    logprob: float | None
    second: str | None = None
    explanation: Explanation | None = None


class Sentence(NamedTuple):
    """What the decoder says of one pair: `text`, `logprob` and `second` of a `Caption`."""

    text: str
    logprob: float | None
    second: str | None


@dataclass(frozen=True, eq=False)
class PathCaptions:
    """What the model says of one tile on either path of HASD.

    `routed_changed` is the router's choice by the model's threshold; `experts`, int64 L x k, are those of each
    token on the changed path, best first. A model without a router has the unchanged path alone.
    """

    unchanged: Caption
    changed: Caption | None = None
    routed_changed: bool = False
    experts: npt.NDArray[np.int64] | None = None

    @property
    def chosen(self) -> Caption:
        """What `HiSem.caption` says of the tile."""
        return self.changed if self.routed_changed and self.changed else self.unchanged


class HiSem(nn.Module):
    """The change captioning model of arXiv 2605.15024.

    With `pretrained` the backbone's weights are read as its config says; a loaded bundle brings its own.
    """

    def __init__(self, config: HiSemConfig, vocabulary: Vocabulary, *, pretrained: bool = True) -> None:
        super().__init__()
        self._config = config
        self.vocabulary = vocabulary
        self.backbone = Backbone(config.backbone, pretrained=pretrained)
        self.change = ChangeEncoder(self.backbone.dim, self.backbone.grid, config.bdam, config.hasd)
        self.decoder = Decoder(self.backbone.dim, len(vocabulary), config.decoder)
        self.preprocess = Preprocess(config.backbone.image_size, self.backbone.mean, self.backbone.std)

    @property
    def config(self) -> HiSemConfig:
        """What the model was made with, and how it routes now."""
        return replace(self._config, hasd=self.change.hasd.config)

    @property
    def change_threshold(self) -> float:
        """p(changed) from which on a pair takes the changed path, in [0, 1]; settable."""
        return self.change.change_threshold

    @change_threshold.setter
    def change_threshold(self, value: float) -> None:
        self.change.change_threshold = value

    def set_routing(self, **settings: float) -> None:
        """Change how the model routes without training it anew; a bundle saved from then on has it.

        `threshold` of the image router; `top_k`, `groups`, `groups_kept` and `balance_weight` of the
        experts. Raises `ConfigError`, and changes nothing, for settings that the weights fix, values that
        do not fit together, and a model without a router.
        """
        self.change.set_routing(**settings)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile backbone, BDAM and the decoder's step in place; `torch.compile` takes the arguments.

        Routing stays eager, as which path and expert run depends on the pixels. The names of the weights
        stay, so that the bundle does. The first batch takes long; a C++ compiler is needed.
        """
        self.backbone.compile(*args, **options)
        self.change.bdam.compile(*args, **options)
        self.decoder.compile_step(*args, **options)

    def forward(self, before: Tensor, after: Tensor, word_ids: Tensor, changed: Tensor | None = None) -> HiSemOutput:
        """Teacher-forced pass; the only entry training uses.

        `before`, `after`: normalised images B 3 h w; `word_ids` B T, START first; `changed` (B, bool)
        chooses the path, None lets the router.
        """
        batch = len(before)
        tokens = self.backbone(torch.cat([before, after]))  # 2B L D: one pass for both dates
        found = self.change(tokens[:batch], tokens[batch:], changed)
        return HiSemOutput(self.decoder(word_ids, found.memory), found.logits, found.balance_loss)

    def generate(self, memory: Tensor, beam: int = 1, allow_unknown: bool = True) -> list[list[Hypothesis]]:
        """For each row of memory B L D its hypotheses, best first (see `hisem.model.generation`)."""
        return generate(self.decoder, memory, beam, allow_unknown)

    @torch.no_grad()
    def caption(
        self,
        before: Tensor,
        after: Tensor,
        beam: int = 1,
        *,
        keep_unknown: bool = False,
        explain: bool = False,
        sure_unchanged: float | None = None,
    ) -> list[Caption]:
        """Captions of uint8 image pairs B 3 H W each, on the model's device. Call `eval` first: dropout would act.

        The text never holds `<UNK>`, unless `keep_unknown` lets it compete like any word, as the published
        scores have it. With `explain` each caption brings its `Explanation`. Pairs with p(changed) under
        `sure_unchanged` skip the decoder and get the canonical sentence; the captions of the others stay as they
        are. Raises `ConfigError` as `require_sure` does.
        """
        if sure_unchanged is not None:
            self.require_sure(sure_unchanged)
        batch = len(before)
        if not batch:
            return []
        tokens = self.backbone(self.preprocess(torch.cat([before, after])))
        found = self.change(tokens[:batch], tokens[batch:])
        if found.logits is None:
            said = self._say(found.memory, beam, keep_unknown)
            probabilities: list[float | None] = [None] * batch
            changed = [each.text != UNCHANGED_SENTENCE for each in said]
        else:
            probability = found.logits.softmax(dim=-1)[:, 1]
            sure = probability < (sure_unchanged or 0.0)
            said = self._say_unsure(found.memory, sure, beam, keep_unknown)
            probabilities, changed = probability.tolist(), found.changed.tolist()
        explanations = self._explanations(found) if explain else [None] * batch
        return [
            Caption(each.text, flag, probability, each.logprob, each.second, explanation)
            for each, flag, probability, explanation in zip(said, changed, probabilities, explanations, strict=True)
        ]

    def require_sure(self, sure_unchanged: float) -> None:
        """Raise `ConfigError` unless pairs with p(changed) under that are surely unchanged to this model: it lies in
        (0, 1], is not above the change threshold, and the model has a router.
        """
        told = f"sure_unchanged={sure_unchanged}"
        if not 0 < sure_unchanged <= 1:
            raise ConfigError(f"{told}: must lie in (0, 1].")
        if not self.change.hasd.config.router:
            raise ConfigError(
                f"{told}: this model has no image router, so that no pair has a p(changed); leave it out."
            )
        if sure_unchanged > self.change_threshold:
            raise ConfigError(
                f"{told}: must be at most the model's change threshold {self.change_threshold}, as pairs that are "
                "changed to it would be called unchanged."
            )

    @torch.no_grad()
    def caption_paths(
        self, before: Tensor, after: Tensor, beam: int = 1, *, keep_unknown: bool = False
    ) -> list[PathCaptions]:
        """As `caption`, but with what the model says of each pair on either path, whatever the threshold.

        Backbone and BDAM run once. That tells what every other threshold would give.
        """
        batch = len(before)
        if not batch or not self.change.hasd.config.router:
            return [PathCaptions(caption) for caption in self.caption(before, after, beam, keep_unknown=keep_unknown)]
        tokens = self.backbone(self.preprocess(torch.cat([before, after])))
        found = self.change.both_paths(tokens[:batch], tokens[batch:])
        said = self._say(torch.cat([found.unchanged, found.changed]), beam, keep_unknown)
        probabilities = found.logits.softmax(dim=-1)[:, 1].tolist()
        captions = [
            Caption(each.text, place >= batch, probability, each.logprob, each.second)
            for place, (each, probability) in enumerate(zip(said, 2 * probabilities, strict=True))
        ]
        chosen, experts = found.chosen.tolist(), found.experts.numpy(force=True)
        return [PathCaptions(*pair) for pair in zip(captions[:batch], captions[batch:], chosen, experts, strict=True)]

    def _say(self, memory: Tensor, beam: int, keep_unknown: bool) -> list[Sentence]:
        """The best and the second-best sentence for each row of memory B L D."""
        said = []
        for hypotheses in self.generate(memory, beam, allow_unknown=keep_unknown):
            text, *second = (self.vocabulary.decode(each.ids, keep_unknown=keep_unknown) for each in hypotheses[:2])
            said.append(Sentence(text, hypotheses[0].logprob, second[0] if second and second[0] != text else None))
        return said

    def _say_unsure(self, memory: Tensor, sure: Tensor, beam: int, keep_unknown: bool) -> list[Sentence]:
        """As `_say`, but rows that are `sure` (B, bool) to be unchanged do not reach the decoder."""
        asked = memory[~sure] if sure.any() else memory
        said = iter(self._say(asked, beam, keep_unknown))
        return [Sentence(UNCHANGED_SENTENCE, None, None) if skip else next(said) for skip in sure.tolist()]

    def _explanations(self, found: ChangeOutput) -> list[Explanation | None]:
        grid = self.backbone.grid
        strength = found.discrepancy.float().mean(dim=-1).unflatten(1, grid).numpy(force=True)  # B rows columns
        moved = iter(() if found.experts is None else found.experts.unflatten(1, grid).numpy(force=True))
        return [
            Explanation(tile, next(moved) if changed else None)
            for tile, changed in zip(strength, found.changed.tolist(), strict=True)
        ]

    def save_pretrained(self, folder: str | Path, metrics: dict[str, Any] | None = None) -> str:
        """Write the bundle and return its digest. `metrics` is what is known about its quality."""
        return bundle.save(self, Path(folder), metrics or {})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> HiSem:
        """Load a bundle from a local folder, in eval mode on the CPU. Raises `BundleError`."""
        return bundle.load(cls, HiSemConfig, Path(folder))
