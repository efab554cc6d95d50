"""Lines that say how far a training run is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def step_line(step: Mapping[str, Any]) -> str:
    """One line of a step: `epoch` (from 1), `epochs`, `step`, `steps`, `loss`, `pairs_per_second`, `waiting` (share of
    the time that was spent waiting for data) and `seconds_left`, without validation.
    """
    return (
        f"epoch {step['epoch']}/{step['epochs']}  step {step['step']}/{step['steps']}  loss {step['loss']:.3f}  "
        f"{step['pairs_per_second']:.0f} pairs/s  {100 * step['waiting']:.0f} % waiting for data  "
        f"{duration(step['seconds_left'])} left"
    )


def epoch_line(report: Mapping[str, float], metric: str) -> str:
    """One line of a validated epoch's report; `metric` is the one that chooses the best."""
    waiting = 100 * report["train_waiting"] / max(report["train_seconds"], 1e-9)
    return (
        f"epoch {int(report['epoch'])} done: loss {report['train_loss']:.3f}, validation {metric} "
        f"{report[f'val_{metric}']:.3f}, change accuracy {report['val_change_accuracy']:.3f} "
        f"({duration(report['train_seconds'] + report['val_seconds'])}, {waiting:.0f} % waiting for data)"
    )


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
