"""Reading options: what cannot be meant is refused, and outputs remember what is not the default."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hisem.archive.options import ReadOptions
from hisem.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"overlap": -1}, "overlap is -1"),
        ({"min_valid": 1.5}, r"min_valid is 1\.5"),
        ({"resolution": 0.0}, r"resolution is 0\.0"),
        ({"resolution": float("inf")}, "resolution is inf"),
        ({"bands": ()}, "bands is empty"),
        ({"bands": ("1", "2")}, "bands is 1 2"),
        ({"bands": ("0", "1", "2")}, "numbers count from 1"),
        ({"after_bands": ("1", "2", "3", "4")}, "after_bands is 1 2 3 4"),
        ({"scaling": "range"}, "--scale-range LO HI"),
        ({"scale_range": (0.0, 1.0)}, "--scaling range"),
        ({"scaling": "range", "scale_range": (3.0, 3.0)}, r"scale_range is 3\.0 3\.0"),
        ({"scaling": "range", "scale_range": (0.0, float("nan"))}, "scale_range is"),
        ({"percentiles": (1.0, 99.0)}, "add --scaling percentiles"),
        ({"scaling": "percentiles", "percentiles": (98.0, 2.0)}, "the lower first"),
        ({"scaling": "percentiles", "percentiles": (0.0, 101.0)}, "from 0 to 100"),
        ({"nodata": float("nan")}, "nodata is nan"),
        ({"max_shift": 0.0}, r"max_shift is 0\.0: a value above 0"),
        ({"max_shift": float("inf")}, "max_shift is inf"),
        ({"skip_shifted": True}, "give --max-shift"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ReadOptions(**values)


def test_only_what_is_not_the_default_is_remembered() -> None:
    assert ReadOptions().changed() == {}
    options = ReadOptions(overlap=8, resolution=0.5, bands=("4", "3", "2"), nodata=0.0)
    assert options.changed() == {"overlap": 8, "resolution": 0.5, "bands": ["4", "3", "2"], "nodata": 0.0}
    assert json.loads(json.dumps(options.changed())) == options.changed()
    assert options.pixel_settings() == {"bands": ["4", "3", "2"], "nodata": 0.0}
