"""Whether the other nodes of a cluster see the files of a run: asked before it works, since each has its own disk."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hisem import storage
from hisem.errors import StorageError

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""How long a node looks for what it does not see: shared file systems show new files late."""
ANSWER_SECONDS = 60.0
"""How long a node may take to answer before the run goes on without its answer."""
SAMPLE = 32
"""Files of an archive that are looked for at most."""
SHOWN = 3
"""How many nodes a message names."""


def require_shared(written: Sequence[str] = (), read: Iterable[str] = ()) -> None:
    """Refuse local paths that another node of the cluster does not see.

    In each folder of `written`, which is made where absent, the driver leaves a marker, which every other node must
    find. Of `read`, the files of an archive, a sample is looked for: one that is here must be there, of the same size.
    URIs and a cluster of one node are not asked about; nodes that an autoscaler starts later are not either.

    Raises `StorageError` with the path and the nodes.
    """
    others = _other_nodes()
    folders = [storage.absolute(folder) for folder in written if not storage.is_remote(folder)]
    files = _sizes(spread(sorted({storage.absolute(file) for file in read if not storage.is_remote(file)})))
    if not others or not (folders or files):
        return
    with _markers(folders) as markers:
        unseen = _ask(others, [*markers], files)
    for node, paths in unseen.items():
        if paths:
            _refuse(markers.get(paths[0], paths[0]), [name for name in unseen if paths[0] in unseen[name]] or [node])


def rasters_of(catalogue: pa.Table) -> list[str]:
    """All rasters and masks that a catalogue names."""
    names = ("before", "after", "before_mask", "after_mask")
    columns = [catalogue.column(name).to_pylist() for name in names if name in catalogue.column_names]
    return [path for column in columns for paths in column for path in paths or ()]


def spread(files: Sequence[str], most: int = SAMPLE) -> list[str]:
    """At most so many of them, from the first to the last."""
    count = min(most, len(files))
    return [files[place * (len(files) - 1) // max(1, count - 1)] for place in range(count)]


def unseen_here(markers: Sequence[str], files: dict[str, int], seconds: float = LOOK_SECONDS) -> list[str]:
    """Which markers, and which files of these sizes in bytes, this node does not see within the time."""
    until = time.monotonic() + seconds
    while True:
        there = _sizes([*markers, *files])
        left = [path for path in (*markers, *files) if path not in there or there[path] != files.get(path, 0)]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.2)


def _sizes(files: Iterable[str]) -> dict[str, int]:
    """Bytes of the files that are here."""
    return {file: os.stat(file).st_size for file in files if os.path.isfile(file)}


@contextmanager
def _markers(folders: list[str]) -> Iterator[dict[str, str]]:
    """An empty, hidden file in each folder while the block runs, and which folder it is of."""
    markers = {storage.join(folder, f".{uuid.uuid4().hex}.marker"): folder for folder in folders}
    try:
        for marker in markers:
            storage.write_bytes(marker, b"")
        yield markers
    finally:
        for marker in markers:
            Path(marker).unlink(missing_ok=True)


def _other_nodes() -> dict[str, str]:
    """Nodes but the driver's: a name for people, and the id."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [
        node
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and {"CPU", "GPU"} & {*node["Resources"]}  # others never work
    ]
    return {
        f"{node['NodeName']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})": node["NodeID"] for node in nodes
    }


def _ask(nodes: dict[str, str], markers: list[str], files: dict[str, int]) -> dict[str, list[str]]:
    """What each node does not see; a node that does not answer is told of and left out."""
    look: Any = ray.remote(num_cpus=0, max_retries=0)(unseen_here)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(number, soft=False)).remote(
            markers, files
        ): name
        for name, number in nodes.items()
    }
    _, waiting = ray.wait([*asked], num_returns=len(asked), timeout=ANSWER_SECONDS)
    found = {}
    for answer, name in asked.items():
        try:
            if answer in waiting:
                ray.cancel(answer, force=True)
                raise TimeoutError(f"no answer in {ANSWER_SECONDS:.0f} s")
            found[name] = ray.get(answer)
        except (ray.exceptions.RayError, TimeoutError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("node %s: whether it sees the files of this run is not known (%s)", name, reason)
    return found


def _refuse(path: str, nodes: list[str]) -> None:
    more = f" and {len(nodes) - SHOWN} more" if len(nodes) > SHOWN else ""
    raise StorageError(
        f"{path}: this node sees it, but {', '.join(nodes[:SHOWN])}{more} of the cluster does not: it is on a disk of "
        "this machine alone. Every node that works must see it under the same path: take a folder that all of them "
        "mount, or an object store (s3://..., gs://...)."
    )
