"""A real MLflow server on loopback that a test may kill and start again, a gate before it, and an empty database."""

from __future__ import annotations

import fcntl
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file to copy, as MLflow sets it up: the fifty migrations take many seconds, so once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path, made = folder / "empty-mlflow.db", folder / "new-mlflow.db"
    with (folder / "empty-mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            import mlflow

            mlflow.MlflowClient(f"sqlite:///{made}").search_experiments()
            os.replace(made, path)
    return path


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, empty_mlflow_database: Path) -> Iterator[MlflowServer]:
    """One server for all tests of a worker; whoever kills it starts it again."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_mlflow_database, folder / "server.db")
    server = MlflowServer(folder)
    yield server.start()
    server.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MlflowServer:
    """`uri` stays the same over `start` and `kill`; what was logged is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> MlflowServer:
        """Answering when this returns."""
        self.folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", f"{self.folder}/served"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
        begin_s = time.monotonic()
        while time.monotonic() - begin_s < 120:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return self
            except OSError:
                time.sleep(0.2)
        self.kill()
        raise TimeoutError("the MLflow server did not start")

    def kill(self) -> None:
        """SIGKILL to the server and its workers; no harm if it does not run."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
            self._process = None


class Gate:
    """Passes requests on to a server, and answers 500 to those that `closed(number of the request)` is true for."""

    def __init__(self, target_port: int) -> None:
        self.closed = lambda number: False
        self.num_refused = 0
        # Set to lose the answer of a request that the server took, which is the way to points sent twice.
        self.lose_answers = False
        # Name under which the server is called; None for what the client said.
        self.host: str | None = None
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def forward(self) -> None:
                gate.handle(self, target_port)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # the names that the base class looks for

            def log_message(self, *arguments: object) -> None:
                del arguments

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        self._number = 0
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def handle(self, request: BaseHTTPRequestHandler, port: int) -> None:
        self._number += 1
        refused = self.closed(self._number)
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        status, answer, kind = 500, b"<html>no</html>", "text/html"
        if not refused or self.lose_answers:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
            if self.host:
                headers["Host"] = self.host
            connection.request(request.command, request.path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
            if not refused:
                status, answer, kind = reply.status, content, reply.headers.get("Content-Type", "application/json")
            connection.close()
        self.num_refused += refused
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        request.wfile.write(answer)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
