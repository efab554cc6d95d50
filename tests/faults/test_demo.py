"""The demo learns what it claims to, on scenes held out from training."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from hisem import HiSem
from hisem.archive import png
from hisem.archive.catalogue import read_catalogue
from hisem.archive.synthetic.truth import ANCHORS, Place
from hisem.captions.table import read_captions
from hisem.distributed.session import cluster
from hisem.training.batches import image_tensor


def seen_where_it_is(root: str) -> list[bool]:
    """For each held-out tile with one change on a side or in a corner: whether the change map leans there."""
    model = HiSem.from_pretrained(f"{root}/runs/demo/bundle")
    places = {
        (row["pair_id"], row["row_off"], row["col_off"]): row["places"]
        for row in pq.read_table(f"{root}/archive/references.parquet").to_pylist()
    }
    right = []
    rows = pq.read_table(f"{root}/shards", filters=[("split", "==", "test"), ("status", "==", "ok")]).to_pylist()
    for row in rows:
        place = places[row["pair_id"], row["row_off"], row["col_off"]]
        if len(place) != 1 or place[0] not in ANCHORS or place[0] == Place.CENTER:
            continue
        before, after = (image_tensor([png.decode(row[name])]) for name in ("before_image", "after_image"))
        (caption,) = model.caption(before, after, explain=True)
        assert caption.explanation is not None
        strength = caption.explanation.change_map
        strength = np.where(strength >= strength.max() / 2, strength, 0)
        centre = [np.average(axis, weights=strength) for axis in np.indices(strength.shape)[::-1]]  # x, y
        middle = [(side - 1) / 2 for side in strength.shape[::-1]]
        anchor = ANCHORS[Place(place[0])]
        right.append(all((c - m) * (a - 0.5) > 0 for c, m, a in zip(centre, middle, anchor, strict=True) if a != 0.5))
    return right


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_learns(tmp_path):
    from hisem.distributed.demo import run_demo

    with cluster():
        done = run_demo(str(tmp_path))
    model = {row.tiles: row for row in done.evaluation.rows if row.captioner == "HiSem"}
    assert model["all"].change.accuracy >= 0.97
    assert model["all"].captions.bleu_4 >= 0.70
    assert model["changed"].captions.bleu_4 >= 0.50
    assert done.kinds >= 0.80
    for row in done.evaluation.rows:
        if row.captioner != "HiSem":
            assert row.captions.bleu_4 <= model[row.tiles].captions.bleu_4 - 0.2
    right = seen_where_it_is(str(tmp_path))
    assert len(right) > 100
    assert np.mean(right) >= 0.95
    assert (tmp_path / "explained.png").stat().st_size > 0
    catalogue = read_catalogue(f"{tmp_path}/archive/catalogue.parquet")
    held_out = [
        pair
        for pair, split in zip(*(catalogue.column(c).to_pylist() for c in ("pair_id", "split")), strict=True)
        if split == "test"
    ]
    rows = read_captions(f"{tmp_path}/table")
    assert rows.num_rows == 64 * len(held_out)
    assert set(rows.column("pair_id").to_pylist()) == set(held_out)
