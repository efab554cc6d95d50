"""What object stores and web servers need beyond a path: an endpoint, no secrets in URIs, and plain reasons.

Credentials come from the environment alone (or from where the clouds' own tools find them: profiles, roles).
GDAL and Arrow read the same variables, except for the address of an S3-compatible server, which is derived
here for both.
"""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, urlsplit

from hisem.errors import HisemError, StorageError

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")

SECRET_PARAMETER = re.compile(
    r"(^|[-_])(sig|key|auth)$|signature|credential|token|secret|passw|api-?_?key|access-?_?key", re.IGNORECASE
)
"""Names of query parameters that hold what lets someone in."""

REASONS = (
    (
        r"(response code:|HTTP status) 40[13]\b|ACCESS_DENIED|Access ?Denied|INVALID_ACCESS_KEY|access key|SIGNATURE|"
        r"expired|InvalidCredentials|UNRECOGNIZED_CLIENT",
        "Access is refused: check the credentials in the environment (for S3 AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY, AWS_REGION) and what they permit; some stores answer so for what is not there",
    ),
    (
        r"(response code:|HTTP status) 404\b|does not exist(?! in the file system)|NotFound|NO_SUCH",
        "It is not there: check bucket and path",
    ),
    (
        r"(response code:|HTTP status) (429|5\d\d)\b|SLOW_DOWN|request rate|INTERNAL_FAILURE|internal error|"
        r"UNAVAILABLE",
        "The server is failing: try again later",
    ),
    (
        r"\bcurl|NETWORK_CONNECTION|error sending request|resolve host|timed out|too slow|not exist in the file system",
        "The server cannot be reached: check the network and, for an S3-compatible server, AWS_ENDPOINT_URL",
    ),
)
"""What GDAL, libcurl and the AWS SDK say, and what it means. The first that is found counts.

GDAL says `does not exist in the file system` of what it could not reach a moment ago."""


def reason(message: str) -> str | None:
    """What an error of a store means for a person, or None where it says nothing of the store."""
    return next((meaning for pattern, meaning in REASONS if re.search(pattern, message, re.IGNORECASE)), None)


def s3_endpoint() -> str | None:
    """The address of the S3-compatible server, without a slash at its end; None for AWS itself.

    Raises `StorageError` where the variable holds no http(s) address.
    """
    for variable in ENDPOINT_VARIABLES:
        url = os.environ.get(variable, "").rstrip("/")
        if url and not re.fullmatch(r"https?://[^/@?#]+", url):
            raise StorageError(
                f"{variable}: found {masked(url)}; the server's address is needed, such as https://minio.example:9000."
            )
        if url:
            return url
    return None


def is_unsigned() -> bool:
    """Whether public buckets are read without credentials, as `AWS_NO_SIGN_REQUEST` says to GDAL."""
    return os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "ON", "1")


def has_secret(uri: str) -> bool:
    """Whether `uri` holds a password, or a signature or key in its query."""
    if "://" not in uri:
        return False
    address, _, query = uri.partition("?")
    named = (name for name, _ in parse_qsl(query, keep_blank_values=True))
    return "@" in _host(address) or any(SECRET_PARAMETER.search(name) for name in named)


def require_no_secret(uri: str, error: type[HisemError]) -> None:
    """Raise `error` where `uri` holds a secret: it would go into tables, messages and logs."""
    if has_secret(uri):
        raise error(
            f"{masked(uri)}: holds a password, key or signature; put credentials into the environment instead, "
            "and write the URI without them."
        )


def masked(uri: str) -> str:
    """`uri` as it may be shown: without user, password and the values of its query."""
    if not has_secret(uri):
        return uri
    address, _, query = uri.partition("?")
    host = _host(address)
    shown = address.replace(f"://{host}", f"://{host.rpartition('@')[2]}", 1)
    return f"{shown}?***" if query else shown


def _host(address: str) -> str:
    try:
        return urlsplit(address).netloc
    except ValueError:
        return address.partition("://")[2].partition("/")[0]
