"""Errors that people meet: each says what was found, where, and what to do.

Everything raised for a user's mistake or for bad input derives from `HisemError`; entry points print
its message alone and exit with its `exit_code`. Anything else is a defect and keeps its traceback.
"""

from __future__ import annotations


class HisemError(Exception):
    """Base of all expected errors. `exit_code` follows the command contract: 1 failed, 2 usage."""

    exit_code = 1


class ConfigError(HisemError):
    """A configuration value, flag or key that cannot be used."""

    exit_code = 2


class SchemaError(HisemError):
    """A table that violates its contract in `hisem.schemas`."""


class StorageError(HisemError):
    """A path or URI that cannot be read, written or understood."""


class ConflictError(StorageError):
    """A file that another process wrote after it was read."""


class TakenOverError(StorageError):
    """A folder that this run wrote to until another run took it over, which may do so after a minute of silence."""


class CatalogueError(HisemError):
    """A catalogue that cannot be used as a whole: missing columns, duplicate pairs."""


class AcquisitionsError(HisemError):
    """Acquisitions that cannot be read as a whole: an empty folder, a broken file, a service that does not answer."""


class RasterError(HisemError):
    """A raster, or a pair of them, that cannot be read. Becomes a failed row, never a crash."""


class ReferencesError(HisemError):
    """References that are missing, malformed or name pairs that do not exist."""


class DatasetError(HisemError):
    """Shards that cannot be trained or scored on: empty split, mixed tile sizes, no references."""


class BundleError(HisemError):
    """A model bundle whose parts are missing or contradict each other."""


class TrainingError(HisemError):
    """A training run that cannot go on, for example after a loss that is not finite."""


class StoppedError(TrainingError):
    """A training run that was ended from outside, as by a sweep whose other trials are better."""


class CaptioningError(HisemError):
    """A captioning run that cannot go on, as its captioners die again and again."""


class ResourceError(HisemError):
    """A cluster that cannot give what the run asks for; says which numbers are missing."""


class BusyError(HisemError):
    """An output that another run is writing to."""


class TrackingError(HisemError):
    """The MLflow store or registry cannot be reached or lacks what was named."""
