"""A Hugging Face hub on this machine, as far as a download asks one: HEAD and GET of files over HTTP.

In:  files by repository and name.
Out: its address; every request, in order.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34


class FakeHub:
    """Serves `files[repository][name]`; what was asked for is in `asked`."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.tells_size = True
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                return

            def do_HEAD(self) -> None:
                self.answer(False)

            def do_GET(self) -> None:
                self.answer(True)

            def answer(self, whole: bool) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                repository, _, rest = self.path.lstrip("/").partition("/resolve/")
                name = rest.partition("/")[2]
                known = hub.files.get(repository)
                content = (known or {}).get(name)
                if content is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "RepoNotFound" if known is None else "EntryNotFound")
                    self.send_header("X-Repo-Commit", COMMIT)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                if whole or hub.tells_size:
                    self.send_header("Content-Length", str(len(content)))
                else:
                    self.send_header("Connection", "close")
                self.end_headers()
                if whole:
                    self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"


@contextlib.contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub that runs as long as the block does."""
    hub = FakeHub()
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
