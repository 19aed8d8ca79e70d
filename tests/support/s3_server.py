"""An S3 server on loopback for the tests: moto in a process of its own, with a log of every request.

It is no thread of the tests: jobs, Ray workers and killed subprocesses all talk to it, and it must not wait for them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs


@dataclass(frozen=True)
class Request:
    """One request as the server saw it."""

    kind: str  # GET HEAD PUT DELETE of an object; LIST and POST of a bucket (many deletions); COPY; UPLOAD: multipart
    bucket: str
    key: str  # of an object; a LIST's prefix
    status: int
    length: int = 0  # of the answer, or of what it is about where it has none (HEAD) [bytes]


class S3Server:
    """A running server and what it was asked."""

    def __init__(self, log: Path, check_credentials: bool = False) -> None:
        self.log = log
        log.touch()
        free = "0" if check_credentials else "inf"  # requests that moto answers before it asks who is there
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(log)],
            env={**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": free},
            stdin=subprocess.PIPE,  # held open: its end tells the server that these tests have ended, however
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        port = self.process.stdout.readline()  # it is written when the socket listens
        assert port, f"the server ended with status {self.process.wait()}"
        self.endpoint = f"http://127.0.0.1:{int(port)}"

    def stop(self) -> None:
        """End the process."""
        self.process.communicate(timeout=20)

    def environment(self) -> dict[str, str]:
        """What a process needs to reach the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A plain client, for what the code under test must not do itself."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def create_bucket(self) -> str:
        """A new, empty bucket's name."""
        bucket = f"bucket-{uuid.uuid4().hex[:8]}"
        self.client().create_bucket(Bucket=bucket)
        return bucket

    def upload(self, folder: Path, bucket: str, prefix: str) -> None:
        """Put all files under a folder into a bucket."""
        client = self.client()
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())

    def objects(self, bucket: str) -> dict[str, int]:
        """Size of each object of a bucket, by key."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {o["Key"]: o["Size"] for page in pages for o in page.get("Contents", ())}

    def requests(self, bucket: str, first: int = 0) -> list[Request]:
        """What was asked of a bucket so far, from the `first` on."""
        rows = (Request(**json.loads(line)) for line in self.log.read_text().splitlines())
        return [r for r in rows if r.bucket == bucket][first:]


def count(requests: Iterable[Request]) -> Counter[str]:
    """Number of requests of each kind."""
    return Counter(r.kind for r in requests)


def classify(environ: dict[str, Any], status: int, length: int) -> Request:
    """What a request of path-style S3 is."""
    bucket, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
    key = key.encode("latin-1").decode()  # WSGI hands the path's bytes over as latin-1
    query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
    kind = environ["REQUEST_METHOD"]
    if "HTTP_X_AMZ_COPY_SOURCE" in environ:
        kind = "COPY"
    elif "uploads" in query or "uploadId" in query:
        kind = "UPLOAD"
    elif not key and kind == "GET":
        kind, key = "LIST", query.get("prefix", [""])[0]
    return Request(kind, bucket, key, status, length)


class LoggedApp:
    """WSGI middleware that appends a line of JSON to a file for each request."""

    def __init__(self, app: Callable[..., Iterable[bytes]], log: Path) -> None:
        self.app, self.log, self.lock = app, log.open("a", buffering=1), threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request and write it down before the answer leaves."""

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
            with self.lock:
                self.log.write(json.dumps(asdict(classify(environ, int(status.split()[0]), length))) + "\n")
            return start_response(status, headers, *rest)

        return self.app(environ, start)


def serve(log: Path) -> None:
    """Serve S3 on a free port, which is printed, until standard input ends."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    app = LoggedApp(DomainDispatcherApplication(create_backend_app), log)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
