"""Command-line options that hold an experiment: preset, then file, then flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields

import tyro

from hisem.cli import Options, parse
from hisem.config import read_yaml
from hisem.training.presets import PRESETS, preset


def parse_experiment(options: type[Options], description: str, argv: Sequence[str] | None = None) -> Options:
    """As `hisem.cli.parse`, for options with a field `experiment` whose defaults come from `preset` and `config`.

    Both flags are read first, so that `--help` shows the values in force and any flag goes over them.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset", choices=sorted(PRESETS))
    first.add_argument("--config")
    try:
        chosen, _ = first.parse_known_args(arguments)
    except argparse.ArgumentError:
        return parse(options, description, arguments)  # which reports the mistake with its usage
    over = read_yaml(chosen.config) if chosen.config else {}
    name = chosen.preset or str(next(f.default for f in fields(options) if f.name == "preset"))
    experiment = preset(name, over, chosen.config or f"preset {name}")
    default = options(preset=name, config=chosen.config, experiment=experiment)  # type: ignore[call-arg]
    return tyro.cli(options, description=description, args=arguments, default=default)
