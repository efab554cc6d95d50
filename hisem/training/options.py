"""Command-line options that hold an experiment: preset, the model to start from, file, then flags."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hisem.cli import Options, parse
from hisem.config import merge, read_yaml
from hisem.model.bundle import read_config
from hisem.model.hisem import HiSemConfig
from hisem.training.presets import PRESETS, preset

Resolve = Callable[[str, str | None, Path], Path]
"""From a model reference, a tracking URI and a scratch folder to the local folder of the model's bundle."""


def parse_experiment(
    options: type[Options],
    description: str,
    argv: Sequence[str] | None = None,
    resolve: Resolve | None = None,
    over_preset: dict[str, Any] | None = None,
) -> Options:
    """As `hisem.cli.parse`, for options with a field `experiment` whose defaults come from `preset` and `config`.

    The values of `over_preset` (nested plain data) go over the preset's, and the file's over these.

    With `resolve`, options have the fields `init` and `tracking` too, and the config of the model that `init` names
    takes the place of all that the preset says of the model.

    These flags are read first, so that `--help` shows the values in force and any flag goes over them.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset", choices=sorted(PRESETS))
    first.add_argument("--config")
    if resolve is not None:
        first.add_argument("--init")
        first.add_argument("--tracking")
    try:
        chosen, _ = first.parse_known_args(arguments)
    except argparse.ArgumentError:
        return parse(options, description, arguments)  # which reports the mistake with its usage
    over = merge(over_preset or {}, read_yaml(chosen.config) if chosen.config else {})
    name = chosen.preset or str(next(f.default for f in fields(options) if f.name == "preset"))
    model = None
    if resolve is not None and chosen.init is not None:
        with tempfile.TemporaryDirectory() as scratch:
            model = read_config(HiSemConfig, resolve(chosen.init, chosen.tracking, Path(scratch)))
    experiment = preset(name, over, chosen.config or f"preset {name}", model)
    default = options(**{**vars(chosen), "preset": name, "experiment": experiment})
    return parse(options, description, arguments, default)
