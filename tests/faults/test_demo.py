"""The demo learns what it claims to, on scenes held out from training."""

import pytest

from hisem.archive.catalogue import read_catalogue
from hisem.captions.table import read_captions
from hisem.distributed.session import cluster


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
    catalogue = read_catalogue(f"{tmp_path}/archive/catalogue.parquet")
    held_out = [
        pair
        for pair, split in zip(*(catalogue.column(c).to_pylist() for c in ("pair_id", "split")), strict=True)
        if split == "test"
    ]
    rows = read_captions(f"{tmp_path}/table")
    assert rows.num_rows == 64 * len(held_out)
    assert set(rows.column("pair_id").to_pylist()) == set(held_out)
