"""What Prometheus would fetch from the node of these tests."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable

import ray

Labels = tuple[tuple[str, str], ...]
Metrics = dict[str, dict[Labels, float]]
"""Values by name and labels."""
OURS = ("run", "status", "failure", "state")


def scrape() -> tuple[str, Metrics]:
    """What the node of this test serves, and our metrics of it by our labels: summed over processes."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    found: Metrics = {}
    for name, labels, value in re.findall(r"(?m)^(ray_hisem_\w+)\{(.*)\} (\S+)$", text):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        ours = tuple((label, pairs[label]) for label in OURS if pairs.get(label))
        series = found.setdefault(name, {})
        series[ours] = series.get(ours, 0) + float(value)
    return text, found


def until(holds: Callable[[Metrics], bool], seconds: float = 30) -> Metrics:
    """Our metrics as soon as they hold: Ray sends them on every few seconds."""
    end = time.monotonic() + seconds
    while not holds(found := scrape()[1]) and time.monotonic() < end:
        time.sleep(0.2)
    return found
