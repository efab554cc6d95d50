"""Names of runs and sweeps, which name folders on any storage."""

from __future__ import annotations

import pytest

from hisem.distributed.sweep import SweepOptions
from hisem.distributed.trainer import TrainOptions
from hisem.errors import ConfigError
from hisem.training.presets import preset
from hisem.training.space import Space


def test_names_of_folders_are_taken() -> None:
    assert TrainOptions("data", "s3://bucket/runs", "first-1.a_b", "").folder == "s3://bucket/runs/first-1.a_b"


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "two words"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="it names a folder"):
        TrainOptions("data", "runs", name, "")
    with pytest.raises(ConfigError, match="it names a folder"):
        SweepOptions(Space("", "", preset("demo")), "data", "runs", name, "")
