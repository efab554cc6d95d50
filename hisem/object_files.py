"""Conditional writes to a bucket, by obstore: Arrow has none.

Credentials and endpoint come from the same environment as Arrow's (`hisem.object_store`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
import pyarrow.fs as pafs
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PreconditionError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from hisem.conditional import Check, Read, Version, unchecked
from hisem.errors import ConflictError, StorageError
from hisem.object_store import is_unsigned, reason, s3_endpoint
from hisem.storage import CONNECT_SECONDS, STALL_SECONDS

log = logging.getLogger(__name__)

RETRY: Any = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
SUSPENDED_SECONDS = 120.0
"""A request that fails after so long had no retries if the process was suspended meanwhile: it is sent once more."""
REQUEST_SECONDS = 900
"""Limit of one request: a file of 262,144 rows has some 100 MB."""
NOT_IMPLEMENTED = ("status code: 501", "NotImplemented")


class ObjectFiles:
    """Files below a prefix of a bucket."""

    def __init__(self, folder: str, kind: str, path: str) -> None:
        bucket, _, prefix = path.partition("/")
        self.folder, self._prefix = folder, prefix.strip("/")
        self.conditional = True
        self._lacks_boto3 = kind == "s3" and not is_unsigned() and not _has_keys() and find_spec("boto3") is None
        try:
            self._store = _store(kind, folder, bucket)
        except (BaseError, ValueError, OSError) as error:
            raise self._failed("", "opened", error) from error

    def read(self, name: str) -> Read | None:
        """Return the object, None where it is absent."""
        return self._read(name, again=True)

    def _read(self, name: str, again: bool) -> Read | None:
        began = time.monotonic()
        try:
            found = obstore.get(self._store, self._key(name))
            return Read(bytes(found.bytes()), _version(found.meta))
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            if again and time.monotonic() - began > SUSPENDED_SECONDS:
                return self._read(name, again=False)
            raise self._failed(name, "read", error) from error

    def put(self, name: str, content: bytes, expected: Version | None, check: Check = unchecked) -> Version:
        """Write the object, in one request."""
        return self._put_checked(name, content, expected, check, again=True)

    def _put_checked(self, name: str, content: bytes, expected: Version | None, check: Check, again: bool) -> Version:
        check()
        began = time.monotonic()
        try:
            mode: Any = "create" if expected is None else _condition(expected)
            if not self.conditional:
                there = self.read(name)
                if (there.version if there else None) != expected and not (there and there.content == content):
                    raise ConflictError(f"{self.folder}/{name}: another process wrote it meanwhile.")
                mode = "overwrite"
            return self._put(name, content, mode)
        except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
            there = self.read(name)
            if there is not None and there.content == content:  # an attempt whose answer was lost
                return there.version
            if there is None and expected is None:  # nothing is there, and cannot be: no such bucket
                raise self._failed(name, "written", error) from error
            raise ConflictError(f"{self.folder}/{name}: another process wrote it meanwhile.") from error
        except (BaseError, OSError) as error:
            if self.conditional and (
                isinstance(error, NotSupportedError) or any(text in str(error) for text in NOT_IMPLEMENTED)
            ):
                self.conditional = False
                return self.put(name, content, expected, check)
            if again and time.monotonic() - began > SUSPENDED_SECONDS:
                return self._put_checked(name, content, expected, check, again=False)
            raise self._failed(name, "written", error) from error

    def remove(self, name: str, expected: Version, instead: bytes, check: Check = unchecked) -> None:
        """Write `instead`."""
        self.put(name, instead, expected, check)

    def clear(self, folders: Iterable[str]) -> None:
        """Do nothing: an object is there when it is whole."""

    def _put(self, name: str, content: bytes, mode: Any) -> Version:
        return _version(obstore.put(self._store, self._key(name), content, mode=mode, use_multipart=False))

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _failed(self, name: str, deed: str, error: Exception) -> StorageError:
        uri = f"{self.folder}/{name}".rstrip("/")
        text = " ".join(str(error).split())
        remedy = reason(text.replace("status code:", "HTTP status"))
        hint = " Credentials of a profile are found where boto3 is installed." if self._lacks_boto3 else ""
        return StorageError(f"{uri}: cannot be {deed} ({text[:500]}).{f' {remedy}.' if remedy else ''}{hint}")


def _store(kind: str, folder: str, bucket: str) -> Any:
    options: Any = {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=STALL_SECONDS),
        "timeout": timedelta(seconds=REQUEST_SECONDS),
    }
    if bundle := os.environ.get("AWS_CA_BUNDLE"):
        options["root_certificate"] = Path(bundle).read_bytes()
    if kind == "gcs":
        return GCSStore(bucket, client_options=options, retry_config=RETRY)
    if kind == "abfs":
        host = urlsplit(folder).hostname or ""
        name = host.partition(".")[0] if "." in host else os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        account: Any = {"account_name": name} if name else {}
        return AzureStore(bucket, config=account, client_options=options, retry_config=RETRY)
    config, provider = _s3(bucket)
    if config.get("endpoint", "").startswith("http://"):
        options["allow_http"] = True
    return S3Store(bucket, config=config, client_options=options, retry_config=RETRY, credential_provider=provider)


def _s3(bucket: str) -> tuple[Any, Any]:
    """Return what `hisem.storage` gives to Arrow, and where credentials come from if not from variables."""
    endpoint = s3_endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = pafs.resolve_s3_region(bucket) if endpoint is None else "us-east-1"
    config: dict[str, Any] = {"region": region}
    if endpoint:
        config |= {"endpoint": endpoint, "virtual_hosted_style_request": False}
    if is_unsigned():
        return config | {"skip_signature": True}, None
    if _has_keys() or find_spec("boto3") is None:
        return config, None  # else roles of instances, containers and web identities
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider  # profiles and processes, as Arrow finds them

        return config, Boto3CredentialProvider()
    except ValueError:
        return config, None


def _has_keys() -> bool:
    return bool(os.environ.get("AWS_ACCESS_KEY_ID"))


def _version(meta: Any) -> Version:
    return Version(meta["e_tag"] or "", meta.get("version"))


def _condition(version: Version) -> dict[str, str]:
    return {"e_tag": version.etag} | ({"version": version.generation} if version.generation else {})
