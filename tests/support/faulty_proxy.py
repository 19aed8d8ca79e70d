"""A proxy in front of an S3 server: transparent until a test gives it a rule, then as bad as storage can be.

A rule is a method, a piece of the key, a fault and how often it strikes. Signatures pass, as the Host header is kept.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

REFUSALS = {"slow down": (503, "SlowDown"), "internal error": (500, "InternalError"), "denied": (403, "AccessDenied")}
FAULTS = (*REFUSALS, "silence", "trickle", "cut answer", "cut upload", "wrong length")
SILENCE_S = 5.0  # longer than clients wait: three seconds
HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}


@dataclass
class Rule:
    """Which requests a fault strikes, and how many of them."""

    method: str
    key: str  # a piece of the path
    fault: str
    times: float = 1

    def strikes(self, method: str, path: str) -> bool:
        """Whether it takes this request; it has one time less, then."""
        if self.times < 1 or self.method != method or self.key not in path:
            return False
        self.times -= 1
        return True


class FaultyProxy:
    """A running proxy and what it did."""

    def __init__(self, upstream: str) -> None:
        self.rules: list[Rule] = []
        self.injected: Counter[str] = Counter()
        self.lock = threading.Lock()
        handler = type("BoundHandler", (Handler,), {"proxy": self, "upstream": urlsplit(upstream).netloc})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """End the server."""
        self.server.shutdown()
        self.server.server_close()

    def fault_of(self, method: str, path: str) -> str:
        """The fault that strikes a request, or nothing."""
        with self.lock:
            for rule in self.rules:
                if rule.strikes(method, path):
                    self.injected[rule.fault] += 1
                    return rule.fault
        return ""

    @contextmanager
    def faulty(self, *rules: Rule) -> Iterator[Counter[str]]:
        """Inject faults while the context lasts; gives the count of those injected in it."""
        with self.lock:
            self.rules, self.injected = list(rules), Counter()
        try:
            yield self.injected
        finally:
            with self.lock:
                self.rules = []


class Handler(BaseHTTPRequestHandler):
    """Forwards one request after another of a connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each small answer would wait for the last one to be acknowledged
    proxy: FaultyProxy
    upstream: str

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def handle_one_request(self) -> None:
        """A client that hangs up is no news."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def forward(self) -> None:
        """Answer as the server does, or with a fault."""
        fault = self.proxy.fault_of(self.command, self.path)
        if fault == "cut upload":
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.close_connection = True
            return
        body = self._body()
        if fault in REFUSALS:
            self._refuse(*REFUSALS[fault])
            return
        if fault == "silence":
            time.sleep(SILENCE_S)
            self.close_connection = True
            return
        self._answer(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def _refuse(self, status: int, code: str) -> None:
        body = (
            b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        )
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, body: bytes, fault: str) -> None:
        answer, data = self._ask(body)
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        told = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", str(int(told) + 10) if fault == "wrong length" else told)
        self.end_headers()
        self._send(data, fault)
        self.close_connection |= fault in ("cut answer", "wrong length")

    def _ask(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        """The server's own answer; a busy one may refuse a connection, which is no fault that a test has asked for."""
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP | {"content-length"}}
        for pause in (0.1, 0.5, 2.0, None):
            connection = http.client.HTTPConnection(self.upstream, timeout=60)
            try:
                connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
                answer = connection.getresponse()
                return answer, answer.read()
            except ConnectionError:
                if pause is None:
                    raise
                time.sleep(pause)
            finally:
                connection.close()
        raise AssertionError  # the last turn returns or raises

    def _send(self, data: bytes, fault: str) -> None:
        if fault == "cut answer":
            data = data[: len(data) // 2]
        step = max(1, len(data) // 20) if fault == "trickle" else max(1, len(data))
        for first in range(0, len(data), step):
            self.wfile.write(data[first : first + step])
            self.wfile.flush()
            if fault == "trickle":
                time.sleep(0.05)
