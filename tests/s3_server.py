"""An S3-compatible server on loopback for tests: moto's, with a log of requests and faults on demand.

It is a process of its own, because opening a raster holds the interpreter's lock while GDAL waits for an
answer. It prints its address and ends when its standard input does.

Beside S3's requests it knows two of its own: `GET /_log` answers with all requests since the last such call,
and `POST /_faults` takes a list of `{"path", "status", "times"}`: that many requests of each method whose
path contains `path` are answered with `status` (null: all of them). Requests signed with the key `wrong` are
refused, as moto lets everyone in.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

REFUSED = "<Error><Code>{code}</Code><Message>{message}</Message></Error>"


class LoggedStore:
    """A WSGI application around moto's."""

    def __init__(self) -> None:
        self.store = DomainDispatcherApplication(create_backend_app)
        self.log: list[dict[str, Any]] = []
        self.faults: list[dict[str, Any]] = []
        self.seen: Counter[tuple[str, str]] = Counter()
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(environ)
        with self.lock:
            answer = self._answer(request)
            if answer is None:
                entry = {"method": request.method, "path": request.full_path, "range": request.headers.get("Range")}
                self.log.append(entry)
        if answer is not None:
            return answer(environ, start_response)
        return self.store(environ, start_response)

    def _answer(self, request: Request) -> Response | None:
        """What is answered without moto."""
        if request.path == "/_log":
            found, self.log = self.log, []
            return Response(json.dumps(found))
        if request.path == "/_faults":
            self.faults = json.loads(request.get_data())
            self.seen.clear()
            return Response()
        if "Credential=wrong/" in request.headers.get("Authorization", ""):
            return Response(REFUSED.format(code="InvalidAccessKeyId"), 403, mimetype="application/xml")
        for fault in self.faults:
            if fault["path"] in request.path:
                self.seen[request.method, fault["path"]] += 1
                if fault["times"] is None or self.seen[request.method, fault["path"]] <= fault["times"]:
                    self.log.append({"method": request.method, "path": request.full_path, "status": fault["status"]})
                    return Response(REFUSED.format(code="Fault"), fault["status"], mimetype="application/xml")
        return None


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, LoggedStore(), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
