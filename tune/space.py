"""The default search space of a sweep; copy it and give the copy as --space.

`space` gets an Optuna trial and the experiment that the sweep starts from, asks the trial for values, and returns
settings as in a --config file. Names given to the trial head the columns of the sweep's tables. The image router's
threshold is not drawn: it is swept on every trial's validation captions, without training anew.
"""

from typing import Any

import optuna

from hisem.training.recipe import Experiment


def space(trial: optuna.Trial, base: Experiment) -> dict[str, Any]:
    """Settings of one trial. Each range follows from the values before it, so that only legal ones are drawn."""
    experts = trial.suggest_categorical("experts", [4, 8, 16])
    groups = trial.suggest_categorical("groups", [1, 2, 4])  # each divides every number of experts
    groups_kept = trial.suggest_int("groups_kept", 1, groups)
    top_k = trial.suggest_int("top_k", 1, min(4, groups_kept * experts // groups))
    rate = base.training.learning_rate
    return {
        "model": {
            "bdam": {"difference_weight": trial.suggest_float("lambda", 0.5, 1.0)},
            "hasd": {
                "moe": {
                    "experts": experts,
                    "groups": groups,
                    "groups_kept": groups_kept,
                    "top_k": top_k,
                    "shared_experts": trial.suggest_int("shared_experts", 0, 2),
                    "balance_weight": trial.suggest_float("balance_weight", 1e-4, 1e-2, log=True),
                }
            },
        },
        "training": {"learning_rate": trial.suggest_float("learning_rate", rate / 3, 3 * rate, log=True)},
    }
