"""The captioning job is killed at moments drawn from a seed, and its table is what it would have been."""

from __future__ import annotations

from pathlib import Path

import pytest

from hisem import storage
from tests.faults.kill_captioning import Kills, Kind, kill_often, make_inputs, undisturbed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_killed_six_times_each_tile_has_one_row_in_a_folder_and_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    catalogue, bundle = make_inputs(tmp_path, scenes=3)
    kills = Kills(catalogue, bundle, tmp_path)
    told: list[str] = []
    truth = undisturbed(kills, str(tmp_path / "out"), told.append)
    kinds: list[Kind] = ["driver", "publishing", "captioner"]
    kill_often(kills, str(tmp_path / "out"), 3, 0, kinds, truth, told.append)
    kill_often(kills, storage.join(bucket, "out"), 3, 1, kinds, truth, told.append)
    assert sum(kills.counts.values()) >= 4, told  # the others had ended before


def test_suspended_for_a_minute_and_resumed_it_writes_nothing_over_its_successor(bucket: str, tmp_path: Path) -> None:
    catalogue, bundle = make_inputs(tmp_path, scenes=3)
    kills = Kills(catalogue, bundle, tmp_path)
    lines: list[str] = []
    truth = undisturbed(kills, str(tmp_path / "out"), lines.append)
    kill_often(kills, str(tmp_path / "out"), 1, 0, ["suspended publishing"], truth, lines.append)
    kill_often(kills, storage.join(bucket, "out"), 1, 1, ["suspended publishing"], truth, lines.append)
    assert any("taken over" in kind for kind in kills.counts), lines
