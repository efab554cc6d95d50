"""The line about processes that have not started: what they lack, or that they are starting."""

from __future__ import annotations

import pytest
import ray

from hisem.distributed import budget
from hisem.distributed.waiting import Asked

HALF = {"Alive": True, "Resources": {"CPU": 1.0}}
WHOLE = {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}}


@pytest.mark.parametrize(
    ("wanted", "nodes", "free", "groups", "starting"),
    [
        (Asked(2, 0.5, 0), [WHOLE], {"CPU": 2.0}, [], True),
        (Asked(2, 0.5, 0, grouped=True), [WHOLE], {"CPU": 1.0}, ["CREATED"], True),
        (Asked(2, 1.0, 0), [WHOLE], {"CPU": 1.0}, [], False),
        (Asked(2, 1.0, 0), [WHOLE], {"CPU": 0.0}, ["CREATED"], False),  # somebody else's
        (Asked(2, 1.0, 0, grouped=True), [WHOLE], {"CPU": 0.0}, ["CREATED", "REMOVED"], True),
        (Asked(2, 1.0, 0, grouped=True), [WHOLE], {"CPU": 0.0}, ["CREATED", "PENDING"], False),
        (Asked(2, 1.0, 0, grouped=True), [WHOLE], {"CPU": 0.0}, ["REMOVED"], False),
        (Asked(2, 1.0, 0, grouped=True), [WHOLE], {}, [], False),
        (Asked(1, 2.0, 0), [HALF, HALF], {"CPU": 2.0}, [], False),  # on no one node
        (Asked(1, 1.0, 1), [WHOLE], {"CPU": 2.0}, [], False),
        (Asked(1, 1.0, 1), [WHOLE], {"CPU": 1.0, "GPU": 1.0}, [], True),
    ],
)
def test_processes_that_have_room_are_starting(
    wanted: Asked,
    nodes: list[dict[str, object]],
    free: dict[str, float],
    groups: list[str],
    starting: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "available_resources", lambda: free)
    monkeypatch.setattr(budget, "present", lambda: {"CPU": 2.0, "GPU": 1.0})
    monkeypatch.setattr(
        ray.util, "placement_group_table", lambda: {str(n): {"state": state} for n, state in enumerate(groups)}
    )
    text = wanted.missing()
    assert str(wanted.count) in text
    assert ("are starting" in text) == starting
    assert ("waiting for" in text) != starting
