"""What commands work on when nothing is named: the demo archive and its model, made if absent."""

from __future__ import annotations

import logging

from hisem import storage, tracking
from hisem.distributed.demo import demo_archive, demo_model, demo_shards

log = logging.getLogger(__name__)


def demo_root() -> str:
    """Where the demo archive of commands without arguments lies."""
    return storage.join(storage.default_storage(), "demo")


def default_data() -> str:
    """Shards of the demo archive."""
    log.info("no --data DIR given: working on the demo archive in %s", demo_root())
    return demo_shards(demo_root())


def default_catalogue() -> str:
    """Catalogue of the demo archive."""
    log.info("no --catalog FILE given: working on the demo archive in %s", demo_root())
    return storage.join(demo_archive(demo_root()), "catalogue.parquet")


def default_model(uri: str | None) -> str:
    """Bundle of the demo's model, trained first where there is none."""
    log.info("no --model M given: using the demo's model, which is trained first if absent (some minutes)")
    return demo_model(demo_root(), uri or tracking.default_uri())
