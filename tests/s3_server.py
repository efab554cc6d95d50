"""An S3-compatible server on loopback for tests: moto's, with a log of requests and faults on demand.

It is a process of its own, because opening a raster holds the interpreter's lock while GDAL waits for an
answer. It prints its address and ends when its standard input does.

Beside S3's requests it knows two of its own: `GET /_log` answers with all requests since the last such call,
and `POST /_faults` takes a list of `{"path", "status", "times", "seconds"}`: that many requests of each method
whose path contains `path` (null: all of them) are answered with `status` after so many seconds. Requests that
are signed with the key `wrong` are refused, as moto lets everyone in.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

ERRORS = {
    401: ("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    403: ("AccessDenied", "Access Denied"),
    404: ("NoSuchKey", "The specified key does not exist."),
    500: ("InternalError", "We encountered an internal error. Please try again."),
    503: ("SlowDown", "Please reduce your request rate."),
}
"""What S3 says beside a status; the first comes with status 403 there, too."""


ANYONE = "AWS4-HMAC-SHA256 Credential=anyone/20250101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""With it plain requests are served, too."""


def refusal(kind: int, status: int) -> Response:
    code, message = ERRORS[kind]
    return Response(
        f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>",
        status,
        mimetype="application/xml",
    )


class LoggedStore:
    """A WSGI application around moto's."""

    def __init__(self) -> None:
        self.store = DomainDispatcherApplication(create_backend_app)
        self.log: list[dict[str, Any]] = []
        self.faults: list[dict[str, Any]] = []
        self.seen: Counter[tuple[str, str]] = Counter()
        self.lock, self.writing = threading.Lock(), threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(environ)
        if request.path == "/_log":
            found, self.log = self.log, []
            return Response(json.dumps(found))(environ, start_response)
        if request.path == "/_faults":
            self.faults = json.loads(request.get_data())
            self.seen.clear()
            return Response()(environ, start_response)
        with self.lock:
            self.log.append({"method": request.method, "path": request.path, "range": request.headers.get("Range")})
            fault = self._fault(request)
        if "Credential=wrong/" in request.headers.get("Authorization", ""):
            return refusal(401, 403)(environ, start_response)
        if fault is None:
            environ.setdefault("HTTP_AUTHORIZATION", ANYONE)
            with self.writing if request.method == "PUT" else nullcontext():  # moto checks a condition, then writes
                return self.store(environ, start_response)
        time.sleep(fault["seconds"])
        return refusal(fault["status"], fault["status"])(environ, start_response)

    def _fault(self, request: Request) -> dict[str, Any] | None:
        """The fault that this request meets."""
        for fault in self.faults:
            key = request.method, fault["path"]
            if fault["path"] in request.path:
                self.seen[key] += 1
                if fault["times"] is None or self.seen[key] <= fault["times"]:
                    return fault
        return None


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, LoggedStore(), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
