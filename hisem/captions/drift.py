"""Drift: nights that do not look like the nights before, told in sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np

from hisem.captions.night import Night, moment, percent
from hisem.schemas import OK

TRAILING_DAYS = 28
"""Days before a night that it is compared with."""
NIGHTS = 5
"""Fewest nights that say what is usual."""
TILES = 50
"""Fewest ok tiles by which a night is judged, or says what is usual."""
LIMIT = 3.0
"""Standard deviations from the median beyond which a night is unusual."""
MAD_TO_STD = 1.4826
"""Standard deviation of a normal distribution by its median absolute deviation."""


@dataclass(frozen=True)
class Measured:
    """A number of one night."""

    value: float
    tiles: int
    """Ok tiles behind it."""
    std: float
    """Of one tile."""

    @property
    def sampling(self) -> float:
        """Its standard error."""
        return self.std / math.sqrt(self.tiles)


def unusual(night: Night, trailing: Sequence[Night]) -> list[str]:
    """What is unusual about `night` against those of `trailing` of its model in the `TRAILING_DAYS` before it.

    A sentence each for the share of changed tiles and the mean log-probability of captions, where these lie
    more than `LIMIT` standard deviations from the median of the nights before. [] where tonight has fewer than
    `TILES` tiles, or fewer than `NIGHTS` other nights have as many. The night itself, and an earlier try of the
    same run, may be in `trailing` and do not count.
    """
    began = moment(night.started)
    before = [
        one
        for one in trailing
        if one.run != night.run
        and one.model_digest == night.model_digest
        and began - timedelta(days=TRAILING_DAYS) <= moment(one.started) < began
    ]
    sentences = []
    if told := _compared(_share(night), [_share(one) for one in before], percent, counted=True):
        sentences.append(f"unusual: {percent(night.share_changed or 0)} of the tiles are changed, {told}")
    if told := _compared(_logprob(night), [_logprob(one) for one in before], "{:.2f}".format):
        sentences.append(f"unusual: the mean log-probability of a caption is {night.mean_logprob:.2f}, {told}")
    return sentences


def _share(night: Night) -> Measured | None:
    """The share of changed tiles; `std` follows from what is usual."""
    return None if night.share_changed is None else Measured(night.share_changed, night.statuses[OK], 0.0)


def _logprob(night: Night) -> Measured | None:
    return None if night.mean_logprob is None else Measured(night.mean_logprob, night.logprobs, night.std_logprob or 0)


def _compared(
    tonight: Measured | None,
    before: Sequence[Measured | None],
    shown: Callable[[float], str],
    counted: bool = False,
) -> str | None:
    """How tonight differs from the median, or None where it is no more than what is to be expected.

    To be expected are the deviation between nights, robustly by the median absolute deviation; tonight's
    sampling error; and that of the median itself, which counts where the nights before are few or small. With
    `counted` the numbers are shares, whose sampling errors are binomial.
    """
    known = [one for one in before if one is not None and one.tiles >= TILES]
    if tonight is None or tonight.tiles < TILES or len(known) < NIGHTS:
        return None
    usual = np.array([one.value for one in known])
    median, rounding = float(np.median(usual)), 0.0
    if counted:
        tonight, *known = (replace(one, std=_binomial(median, one.tiles)) for one in (tonight, *known))
        rounding = 0.5 / tonight.tiles + 0.5 / float(np.median([one.tiles for one in known]))
    # For the bias of a median absolute deviation of few.
    between = MAD_TO_STD * float(np.median(np.abs(usual - median))) * len(usual) / (len(usual) - 0.8)
    one_night = max(between, float(np.median([one.sampling for one in known])))
    spread = math.hypot(between, tonight.sampling, one_night * math.sqrt(math.pi / 2 / len(usual)))
    if abs(tonight.value - median) - rounding <= LIMIT * spread:
        return None
    low, high = shown(float(usual.min())), shown(float(usual.max()))
    return (
        f"{'above' if tonight.value > median else 'below'} a median of {shown(median)} "
        f"({low.removesuffix(' %')} to {high}) in the {len(usual)} nights before"
    )


def _binomial(share: float, tiles: int) -> float:
    """Standard deviation of whether one tile is changed; where hardly any is usual, one of the night's is expected."""
    expected = min(max(share, 1 / tiles), 1 - 1 / tiles)
    return math.sqrt(expected * (1 - expected))
