"""Joining a Ray cluster, or starting one on this machine, with quiet logs and token authentication."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import ray
import ray.data
import ray.exceptions
from ray.job_config import JobConfig

from hisem import logs
from hisem.distributed import budget, ray_folder, ray_output
from hisem.distributed.address import reachable
from hisem.errors import HisemError, ResourceError

log = logging.getLogger(__name__)

BLOCKS: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None, "max_retries": 8}
"""For `map_batches`: tasks that take whole blocks as Arrow tables. One whose process or node has died runs again so
often, where Ray's own default is for ever."""
DIED = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)


@contextmanager
def cluster() -> Iterator[None]:
    """A connection to the cluster that `RAY_ADDRESS` names (as in a submitted job), else a local Ray.

    A local Ray is always a new one, whatever an earlier program left behind, and ends with the block;
    inside an open connection nothing happens. Raises `ResourceError` where the address does not answer, and where
    Ray does not start.
    """
    if ray.is_initialized():
        with _expected():
            yield
        return
    named = os.environ.get("RAY_ADDRESS")
    if named == "local":
        named = None
    address = reachable(named) if named else None
    if address is None:
        ray_folder.require_usable()
    else:
        log.info("Ray: joining the cluster at %s", address)
    interrupt = signal.getsignal(signal.SIGTERM)
    try:
        _init(address)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        if not address:
            ray_folder.require_usable()  # what Ray gives as the reason may only follow from a disk that is full
            raise ResourceError(f"Ray cannot be started here: {error}.") from error
        raise ResourceError(
            f"RAY_ADDRESS={named}: the cluster there cannot be joined: {str(error).rstrip('.')}. Where it asks for a "
            "token: RAY_AUTH_MODE=token, and the cluster's own in RAY_AUTH_TOKEN or ~/.ray/auth_token."
        ) from error
    if interrupt is signal.default_int_handler:  # Ray puts its own in its place, which is no interruption
        signal.signal(signal.SIGTERM, interrupt)
    configure()
    if not address:
        log.info("Ray: local, %d CPUs (RAY_ADDRESS names a cluster instead)", int(cpus()))
    try:
        with _expected():
            yield
    finally:
        ray.shutdown()


def _init(address: str | None, again: bool = True) -> None:
    """`ray.init`; where a local Ray has not come up in the half minute that Ray gives it, once more.

    Raises `ResourceError` where it has not then, either.
    """
    me = psutil.Process()
    before = me.children(recursive=True)
    try:
        with ray_output.filtered():
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,  # for who starts clusters; it takes seconds and memory
                dashboard_host="127.0.0.1",
                logging_level=logging.WARNING,
                log_to_driver=bool(os.environ.get("HISEM_WORKER_LOGS")),
                configure_logging=not logs.wants_json(),
                job_config=_job_config(),
            )
    except Exception as error:  # a plain one in that case
        if address or "timed out during startup" not in str(error):
            raise
        if not again:
            raise ResourceError(f"Ray cannot be started here: {error}") from error
        ray_folder.require_usable()  # a disk that has become full looks the same
        for started in set(me.children(recursive=True)) - set(before):
            with suppress(psutil.NoSuchProcess):
                started.kill()
        log.warning("Ray did not start in time, as on a very busy machine: trying once more")
        _init(address, again=False)


def _job_config() -> JobConfig:
    """What this driver's workers are told: to log as it does. Theirs are Ray's JSON lines, with the ids of its own."""
    config = JobConfig()
    if logs.wants_json():
        # Not by `ray.init(logging_config=...)`, which would set up this process, too.
        level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
        config.set_py_logging_config(ray.LoggingConfig("JSON", level, additional_log_standard_attrs=["name"]))
        logging.getLogger("ray").setLevel(logging.WARNING)
        logging.getLogger("ray").propagate = True
        os.environ.setdefault("RAY_BACKEND_LOG_JSON", "1")  # what is not Python logs by itself
    return config


@contextmanager
def _expected() -> Iterator[None]:
    """An expected error that Ray carried out of a task or actor comes out as itself, and a task's death as one."""
    try:
        yield
    except DIED as error:
        log.debug("what Ray says of it", exc_info=True)
        reason = str(error).strip().partition("\n")[0]  # what follows are a node's processes and links
        told = (
            f"a process died again and again on the same work ({reason}). Memory may not suffice for a scene, or a "
            "file may crash its reader: with a part of the catalogue at a time, the pair is found."
        )
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            told += " Where other processes fill the node: RAY_task_oom_retries says how often work waits for them."
        raise ResourceError(told) from error
    except ray.exceptions.RayError as error:
        if (inner := expected(error)) is None:
            raise
        raise inner from error


def expected(error: BaseException) -> HisemError | None:
    """The expected error that `error` is or that Ray carries in it, if any."""
    inner: BaseException | None = error  # Ray's own class may derive from the one it carries, too
    while inner is not None and (isinstance(inner, ray.exceptions.RayError) or not isinstance(inner, HisemError)):
        inner = getattr(inner, "cause", None) or inner.__cause__
    return inner


def cpus() -> float:
    """CPUs of the whole cluster, as it is now."""
    return budget.present()["CPU"]


def require(cpu: float, gpu: float, what: str, remedy: str) -> None:
    """Raise `ResourceError` with the numbers where the cluster can never run `what`, instead of hanging.

    Nodes that an autoscaler may still start count.
    """
    now, most = budget.present(), budget.most()
    for kind, needed in (("GPU", gpu), ("CPU", cpu)):
        if needed > most[kind]:
            grown = f", and with all that its autoscaler may start {most[kind]:g}" if most[kind] > now[kind] else ""
            raise ResourceError(
                f"{what} needs {needed:g} {kind}s, the cluster has {now[kind]:g}{grown}: "
                f"{needed - most[kind]:g} are missing. {remedy}"
            )


def require_places(count: int, cpu: float, gpu: float, what: str, remedy: str) -> None:
    """Raise `ResourceError` where the nodes have no place for `count` processes of `cpu` and `gpu`, each on one node.

    Not told where an autoscaler may start nodes, whose sizes are not known here.
    """
    if budget.most() != budget.present():
        return
    places = budget.places_for(cpu, gpu)
    if places < count:
        nodes = [budget.sizes(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        sizes = ", ".join(f"{node['CPU']:g} CPUs" + (f" and {node['GPU']:g} GPUs" if gpu else "") for node in nodes)
        raise ResourceError(
            f"{what} needs {count} places of {cpu:g} CPU(s)"
            f"{f' and {gpu:g} GPU(s)' if gpu else ''}, each on one node; the cluster has {places} "
            f"(its nodes: {sizes}). {remedy}"
        )


def configure() -> None:
    """Set up Ray Data and the logs of this process, as every one that drives Ray needs it."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # an expected error keeps its kind on its way to the driver
    # Of `max_retries`, which this Ray takes nowhere else.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
    if logging.getLogger().isEnabledFor(logging.DEBUG):
        return
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Log the traceback of each trial that fails, which is one line of ours.
    for name in ("ray.tune.execution.tune_controller", "ray.tune.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Logs the stack of each exception that it also raises, and warns that no CPU is free whenever all are at
    # work; `require` has checked the budget.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
