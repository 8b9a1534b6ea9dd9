"""A bucket on this machine that answers as Google Cloud Storage does: an emulator from PyPI, and what it leaves out."""

from __future__ import annotations

import collections
import functools
import http.server
import logging
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

NAME = "bucket"


class Bucket:
    """The server: `url`, and how many bytes were written to each object since `written` was cleared."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.written: collections.Counter[str] = collections.Counter()
        self.writes: collections.Counter[str] = collections.Counter()


@contextmanager
def serve() -> Iterator[Bucket]:
    """Serves `gs://bucket` until the end of the `with`."""
    storage, lock = Storage(use_memory_fs=True), threading.Lock()
    buckets.create_bucket(NAME, storage)
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)

    class Handler(server.RequestHandler):
        protocol_version = "HTTP/1.1"  # clients keep their connections

        def _generation(self, name: str) -> str:
            """Of an object: what preconditions are about; "0": it is not there."""
            try:
                return str(storage.get_file_obj(NAME, name)["generation"])
            except Exception:
                return "0"

        def end_headers(self) -> None:
            match = re.search(r"/o/([^?]+)", self.path)
            if self.command == "GET" and match and "alt=media" in self.path:
                self.send_header("x-goog-generation", self._generation(urllib.parse.unquote(match[1])))
            super().end_headers()

        def do_POST(self) -> None:  # noqa: N802
            query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
            length = int(self.headers.get("Content-Length") or 0)
            with lock:
                if self.path.startswith("/upload"):
                    body = self.rfile.peek(65536) if length else b""
                    named = re.search(rb'"name":\s*"([^"]+)"', body)
                    name = query.get("name", [named.group(1).decode() if named else ""])[0]
                    bucket.written[name] += length
                    bucket.writes[name] += 1
                    # The emulator ignores preconditions: "0" is "only where there is no such object".
                    if query.get("ifGenerationMatch", [self._generation(name)])[0] != self._generation(name):
                        self.rfile.read(length)
                        self.send_response(412, "Precondition Failed")
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                super().do_POST()

        def do_GET(self) -> None:  # noqa: N802
            with lock:
                super().do_GET()

        def do_DELETE(self) -> None:  # noqa: N802
            with lock:
                super().do_DELETE()

        def do_PUT(self) -> None:  # noqa: N802
            with lock:
                super().do_PUT()

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hangs up is no error."""

    served = Server(("127.0.0.1", 0), functools.partial(Handler, storage))
    bucket = Bucket(f"http://127.0.0.1:{served.server_port}")
    threading.Thread(target=served.serve_forever, daemon=True).start()
    try:
        yield bucket
    finally:
        served.shutdown()
        served.server_close()
