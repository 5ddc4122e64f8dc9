"""A web server on this machine for the tests of downloads."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class Server:
    """Serves a folder, ranges included if `ranges`; `cut` makes it break off half-way through files with this ending.

    `asked` has the paths that were asked for, and `sent` the bytes of each answer.
    """

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.sent: list[int] = []
        self.cut, self.ranges = "", True
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                path = Path(self.translate_path(self.path))
                if not path.is_file():
                    self.send_error(404)
                    return
                body, start = path.read_bytes(), 0
                modified = formatdate(path.stat().st_mtime, usegmt=True)
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                if server.ranges and asked and self.headers.get("If-Range") == modified:
                    start = int(asked[1])
                    if start >= len(body):
                        self.send_error(416)
                        return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body) - start))
                self.send_header("Last-Modified", modified)
                self.end_headers()
                body = body[start:]
                if server.cut and self.path.endswith(server.cut):
                    body = body[: len(body) // 2]
                server.sent.append(len(body))
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Server]]:
    """Maker of a server for a folder."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    started: list[tuple[Server, threading.Thread]] = []

    def start(folder: Path) -> Server:
        server = Server(folder)
        thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
