"""Scoring on Ray, against the model in a plain loop, and what it leaves behind."""

import base64
from dataclasses import replace

import pyarrow as pa
import pytest

from hisem import storage
from hisem.distributed.archive import shard_levir_cc
from hisem.distributed.dataset import pixels, read_splits
from hisem.distributed.evaluation_page import write_evaluation
from hisem.distributed.evaluator import evaluate
from hisem.errors import ResourceError
from hisem.model.hisem import HiSem
from hisem.text.published_scores import PUBLISHED
from hisem.training.batches import Collate
from hisem.training.evaluation import caption_batches, expert_load


def test_no_tile_is_dropped_or_doubled_by_three_captioners(shards, bundle, ray_cluster, tmp_path):
    whole = pa.concat_tables([storage.read_parquet(path) for path in storage.list_files(shards, ".parquet")])
    shards = str(tmp_path / "files")
    for start in range(0, len(whole), 13):  # a file is one task: enough of them for all captioners
        storage.write_parquet(whole.slice(start, 13), storage.join(shards, f"part-{start:06d}.parquet"))
    split = read_splits(shards, ("train",))["train"]
    done = evaluate(shards, bundle, "train", captioners=3)
    assert [r.tile_id for r in done.results] == sorted(split.rows.column("tile_id").to_pylist())
    model = HiSem.from_pretrained(bundle)
    batches = pixels(split).iter_batches(batch_size=32, batch_format="numpy")
    alone = caption_batches(model, map(Collate(model.vocabulary, 20, 0, 0), batches))
    by_tile = {result.tile_id: result for result in alone}
    for found in done.results:
        one = by_tile[found.tile_id]
        assert (found.caption, found.predicted, found.references) == (one.caption, one.predicted, one.references)
        assert (found.caption_if_unchanged, found.caption_if_changed) == (
            one.caption_if_unchanged,
            one.caption_if_changed,
        )
    load = expert_load(alone)
    assert load is not None
    assert done.expert_load == load.tolist()
    assert done.curve is not None
    assert done.curve.at(done.threshold).bleu_4 == pytest.approx(done.all_tiles.captions.bleu_4, rel=1e-9)
    assert done.curve.at(done.threshold).change_f1 == pytest.approx(done.all_tiles.change.f1, rel=1e-9)
    assert done.table().column("caption_if_changed").to_pylist() == [r.caption_if_changed for r in done.results]


def test_too_many_captioners_end_with_the_numbers(shards, bundle, ray_cluster):
    with pytest.raises(ResourceError, match=r"scoring with 99 captioner\(s\) needs 50 CPUs"):
        evaluate(shards, bundle, captioners=99)
    with pytest.raises(ResourceError, match="needs 1 GPUs, the cluster has 0"):
        evaluate(shards, bundle, gpu=True)


def test_a_benchmark_is_scored_beside_what_is_published(shared_data, bundle, ray_cluster, tmp_path):
    shards = str(tmp_path / "levir")
    shard_levir_cc(str(shared_data / "levir_cc"), shards)
    done = evaluate(shards, bundle, "test", "ids")
    assert done.published is PUBLISHED["LEVIR-CC"]
    assert done.remarks[0] == "Not comparable with the published scores: 62 of the 1,929 test tiles are scored."
    model = HiSem.from_pretrained(bundle)
    assert done.curve is not None
    assert done.curve.at(model.change_threshold).bleu_4 == pytest.approx(done.all_tiles.captions.bleu_4, rel=1e-9)
    output = str(tmp_path / "out")
    write_evaluation(output, shards, bundle, "test", done, "tiny on test")
    names = {"captions.parquet", "samples.png", "explained.png", "threshold.png", "experts.png", "index.html"}
    assert {path.rpartition("/")[2] for path in storage.list_files(output)} == names
    page = (tmp_path / "out" / "index.html").read_text()
    for name in names - {"captions.parquet", "index.html"}:
        assert base64.b64encode((tmp_path / "out" / name).read_bytes()).decode() in page
    assert done.published.title in page
    without_router = replace(done, curve=None, expert_load=None)
    write_evaluation(str(tmp_path / "plain"), shards, bundle, "test", without_router, "tiny")
    assert {path.rpartition("/")[2] for path in storage.list_files(tmp_path / "plain")} == names - {
        "threshold.png",
        "experts.png",
    }
    assert storage.read_parquet(storage.join(output, "captions.parquet")).num_rows == 62
