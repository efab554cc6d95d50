from __future__ import annotations

import pytest

from hisem.text.metrics import Protocol
from hisem.text.published_scores import PUBLISHED


@pytest.mark.parametrize("benchmark", list(PUBLISHED))
def test_s_m_is_the_mean_of_its_parts(benchmark: str) -> None:
    """A digit that was copied wrongly shows, as the papers print S*m beside its parts."""
    table = PUBLISHED[benchmark]
    assert table.benchmark == benchmark
    for row in table.rows:
        mean = (row.bleu_4 + row.meteor + row.rouge_l + row.cider_d) / 4
        assert row.s_m == pytest.approx(mean, abs=0.0101), row.captioner
        assert row.values()[3:] == [row.bleu_4, row.meteor, row.rouge_l, row.cider_d, row.s_m]
        orders = [score for score in row.values()[:4] if score is not None]
        assert orders == sorted(orders, reverse=True)
        assert len(orders) in (1, 4)


def test_titles() -> None:
    assert PUBLISHED["LEVIR-CC"].title == "published, LEVIR-CC test, 1,929 tiles, protocol ids"
    assert PUBLISHED["WHU-CDC"].title == "published, WHU-CDC test, protocol ids"


@pytest.mark.parametrize(
    ("benchmark", "split", "protocol", "tiles", "differences"),
    [
        ("LEVIR-CC", "test", "ids", 1929, []),
        ("LEVIR-CC", "test", "ids", 62, ["62 of the 1,929 test tiles are scored"]),
        ("LEVIR-CC", "val", "words", 1333, ["the split is val, not test", "the protocol is words, not ids"]),
        ("WHU-CDC", "test", "ids", 62, []),
    ],
)
def test_what_is_not_comparable_is_named(
    benchmark: str, split: str, protocol: Protocol, tiles: int, differences: list[str]
) -> None:
    assert PUBLISHED[benchmark].differences(split, protocol, tiles) == differences
