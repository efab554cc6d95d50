"""What a node sees of a run's files. Nodes that do not see them are tried in tests/faults/test_jobs.py."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from hisem.distributed.shared_storage import rasters_of, require_shared, spread, unseen_here


def test_what_is_absent_or_of_another_size_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / "marker").touch()
    (tmp_path / "same").write_bytes(b"1234")
    (tmp_path / "other").write_bytes(b"12345")
    files = {str(tmp_path / "same"): 4, str(tmp_path / "other"): 4, str(tmp_path / "gone"): 4}
    markers = [str(tmp_path / "marker"), str(tmp_path / "no-marker")]
    assert unseen_here(markers, files, seconds=0) == [f"{tmp_path}/{name}" for name in ("no-marker", "other", "gone")]


def test_a_file_that_appears_late_is_waited_for(tmp_path: Path) -> None:
    late = tmp_path / "late"
    timer = threading.Timer(0.5, late.touch)
    timer.start()
    began = time.monotonic()
    assert unseen_here([str(late)], {}, seconds=30) == []
    assert time.monotonic() - began < 25  # it is not looked for longer than needed
    timer.join()


@pytest.mark.parametrize(("count", "most"), [(0, 3), (1, 3), (3, 3), (10, 3), (10, 1), (1000, 32)])
def test_a_sample_reaches_from_the_first_to_the_last(count: int, most: int) -> None:
    files = [f"{number:04d}" for number in range(count)]
    found = spread(files, most)
    assert len(found) == len(set(found)) == min(count, most)
    assert found == sorted(found)
    if found:
        assert found[0] == files[0]
    if len(found) > 1:
        assert found[-1] == files[-1]


def test_rasters_and_masks_of_a_catalogue() -> None:
    table = pa.table(
        {
            "pair_id": ["a", "b"],
            "before": [["1.tif", "2.tif"], ["3.tif"]],
            "after": [["4.tif"], ["5.tif"]],
            "after_mask": [None, ["6.tif"]],
        }
    )
    assert sorted(rasters_of(table)) == [f"{number}.tif" for number in range(1, 7)]


def test_a_cluster_of_one_node_is_asked_nothing(ray_cluster: None, tmp_path: Path) -> None:
    require_shared([str(tmp_path / "runs")], [str(tmp_path / "gone.tif")])
    assert not list(tmp_path.iterdir())
