"""An HTTP server over a folder that fails as it is told to, for tests of remote reading."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FlakyServer:
    """Serves the files of `folder`.

    `faults` maps a file name to what its next requests meet, in turn: an HTTP status, "cut" (the connection ends
    in the middle), "short" (a shorter file, rightly announced), "flip" (one byte is wrong). `num_gets` counts
    requests by name. Each answer waits `delay_s` in its middle.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, list[int | str]] = {}
        self.num_gets: Counter[str] = Counter()
        self.delay_s = 0.0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator[FlakyServer]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.rpartition("/")[2]
        self.num_gets[name] += 1
        fault = self.faults[name].pop(0) if self.faults.get(name) else None
        path = self.folder / name
        status = fault if isinstance(fault, int) else 200 if path.is_file() else 404
        data = path.read_bytes() if status == 200 else b""
        middle = len(data) // 2
        if fault == "short":
            data = data[:middle]
        elif fault == "flip":
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        request.send_response(status)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        try:
            request.wfile.write(data[:middle])
            time.sleep(self.delay_s)
            if fault != "cut":
                request.wfile.write(data[middle:])
        except (BrokenPipeError, ConnectionResetError):
            pass
