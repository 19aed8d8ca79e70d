"""Object storage: what each access costs in requests, which addresses work, and how soon a wrong one is an error."""

import os
import pickle
import runpy
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
import yaml
from s3_server import S3Server, count
from worlds import job_config

from upl_ray.config.settings import Config
from upl_ray.corpus.find import find
from upl_ray.corpus.read import read_images
from upl_ray.errors import ConfigError
from upl_ray.pipeline.inputs import prepare
from upl_ray.storage import schema
from upl_ray.storage.step import Step
from upl_ray.storage.store import GCS_RETRY, Store, open_filesystem

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return s3.create_bucket()


def test_what_each_access_costs(s3: S3Server, bucket: str) -> None:
    step = Step(Store(f"s3://{bucket}/run"), "step", "0" * 12)
    costs = {}
    for name, access in {
        "unfinished": step.find_manifest,
        "commit": lambda: step.commit("a", parts=[]),
        "nine megabytes": lambda: step.store.write("big", b"x" * 9_000_000),
        "listing": step.committed,
        "finish": step.finish,
        "finished": step.manifest,
        "delete": lambda: step.store.delete(step.path("commits/a.json")),
        "delete what is not there": lambda: step.store.delete("nothing"),
    }.items():
        before = len(s3.requests(bucket))
        access()
        costs[name] = dict(count(s3.requests(bucket, before)))
    assert costs == {
        "unfinished": {"HEAD": 1},
        "commit": {"PUT": 1},
        "nine megabytes": {"PUT": 1},
        "listing": {"LIST": 1},
        "finish": {"PUT": 1},
        "finished": {"HEAD": 1, "GET": 1},  # pyarrow asks for the size first
        "delete": {"HEAD": 1, "DELETE": 1, "PUT": 1},
        "delete what is not there": {"HEAD": 1},
    }
    left = {"run/big", f"run/{step.path('manifest.json')}", f"run/{step.path('commits/')}"}  # an empty object
    assert set(s3.objects(bucket)) == left


def test_large_files_come_back_and_nothing_else_is_left(s3: S3Server, bucket: str) -> None:
    data = os.urandom(12_000_000)
    store = Store(f"s3://{bucket}/run")
    store.write("big.bin", data)
    assert store.read("big.bin") == data
    assert s3.objects(bucket) == {"run/big.bin": len(data)}


def test_many_objects_are_listed_a_thousand_at_a_time(s3: S3Server, bucket: str) -> None:
    client, store = s3.client(), Store(f"s3://{bucket}/digits")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: store.write(f"{i % 7}/{i}.png", b"x"), range(1100)))
    client.put_object(Bucket=bucket, Key="digits/", Body=b"")  # what the console makes for a new folder
    client.put_object(Bucket=bucket, Key="digits/3/", Body=b"")
    before = len(s3.requests(bucket))
    assert set(find(store.uri).files) == {f"{i % 7}/{i}.png" for i in range(1100)}
    assert count(s3.requests(bucket, before)) == {"LIST": 2}


def one_row(image_id: str) -> pa.Table:
    row = {"image_id": image_id, "version": "1-1", "file": image_id}
    return pa.Table.from_pylist([row], schema=schema.LISTING)


@pytest.mark.parametrize("prefix", ["my photos", "größer", "a#b", "100 %25", "x[1]"])
def test_prefixes_may_hold_any_character(s3: S3Server, bucket: str, prefix: str) -> None:
    fs, _ = open_filesystem(f"s3://{bucket}/{prefix}")
    assert isinstance(fs, pafs.S3FileSystem)  # not the slower one that schemes unknown to pyarrow get
    store = Store(f"s3://{bucket}/{prefix}/")
    store.write("one/a b ü#1.png", b"1")
    key = prefix.replace("%25", "%")  # the one escape that a URI needs
    assert list(s3.objects(bucket)) == [f"{key}/one/a b ü#1.png"]
    (image_id,) = find(store.uri).files
    assert read_images(store.uri, one_row(image_id)) == [b"1"]
    assert Store(store.join("one")).names("") == ["a b ü#1.png"]
    store.delete("one/a b ü#1.png")
    assert s3.objects(bucket) == {f"{key}/one/": 0}  # for the folder
    assert Store(store.join("one")).names("") == []


def test_bytes_are_stored_as_they_are_whatever_the_name(s3: S3Server, bucket: str) -> None:
    store = Store(f"s3://{bucket}/run")
    store.write("a.json.gz", b"not compressed")
    assert s3.objects(bucket)["run/a.json.gz"] == len(b"not compressed")
    assert store.read("a.json.gz") == b"not compressed"


def test_only_the_address_of_a_store_travels(bucket: str) -> None:
    store = Store(f"s3://{bucket}/run")
    store.write("a", b"1")  # now it holds a connection
    sent = pickle.dumps(store)
    assert b"S3FileSystem" not in sent
    assert os.environ["AWS_ENDPOINT_URL"].encode() not in sent
    assert pickle.loads(sent).read("a") == b"1"


class Overloaded(ThreadingHTTPServer):
    """Refuses some requests as S3 does under load, then answers with an empty listing."""

    def __init__(self, refusals: int) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.refusals, self.asked = refusals, 0


class Answer(BaseHTTPRequestHandler):
    server: Overloaded

    def do_GET(self) -> None:
        self.server.asked += 1
        refused = self.server.asked <= self.server.refusals
        body = b"<Error><Code>SlowDown</Code></Error>" if refused else b"<ListBucketResult></ListBucketResult>"
        self.send_response(503 if refused else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def overloaded(request: pytest.FixtureRequest, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Overloaded]:
    server = Overloaded(request.param)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("scheme", ["s3a", "s3n"])
def test_hadoops_names_of_s3_are_the_same_storage(bucket: str, scheme: str) -> None:
    Store(f"s3://{bucket}/run").write("a", b"1")
    assert Store(f"{scheme}://{bucket}/run").read("a") == b"1"
    assert Store(f"{scheme}://{bucket}/run").names("") == ["a"]


@pytest.mark.parametrize("overloaded", [4], indirect=True)
def test_an_overloaded_server_is_asked_again(overloaded: Overloaded) -> None:
    assert Store("s3://bucket/run").names("commits") == []
    assert overloaded.asked == 5


@pytest.fixture(params=["no bucket", "wrong credentials", "nobody listens"])
def broken(
    request: pytest.FixtureRequest, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """What a right answer says of an address behind which nothing can work."""
    if request.param == "no bucket":
        yield "bucket does not exist"
    elif request.param == "wrong credentials":
        server = S3Server(tmp_path / "requests.jsonl", check_credentials=True)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        yield "Access Key Id you provided does not exist"
        server.stop()
    else:
        with socket.socket() as reserved:  # bound, not listening
            reserved.bind(("127.0.0.1", 0))
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{reserved.getsockname()[1]}")
            yield "Could not connect to"


@pytest.mark.parametrize("field", ["storage_path", "corpus.uri"])
def test_unusable_object_storage_is_one_sentence_within_seconds(broken: str, field: str, tmp_path: Path) -> None:
    config = unusable(field, tmp_path)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=broken) as caught:
        prepare(config)
    assert time.monotonic() - started < 30
    message = str(caught.value)
    assert "'s3://no-such-bucket/" in message
    assert "access" in message
    assert "\n" not in message


def unusable(field: str, folder: Path) -> Config:
    storage = "s3://no-such-bucket/run" if field == "storage_path" else folder / "run"
    corpus = "s3://no-such-bucket/digits" if field == "corpus.uri" else str(folder)
    return job_config(folder, storage, corpus={"uri": corpus}, scored={"uri": ""})


def test_the_job_says_so_with_status_2(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(unusable("corpus.uri", tmp_path).model_dump(mode="json")))
    monkeypatch.setattr(sys, "argv", ["upl.py", str(tmp_path / "job.yaml")])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "jobs" / "upl.py"), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: corpus: The images under 's3://no-such-bucket/digits' cannot be listed")


@pytest.mark.slow
@pytest.mark.parametrize("access", [lambda uri: Store(uri).names("commits"), find], ids=["storage", "corpus"])
def test_a_silent_server_is_an_error_within_a_minute(
    access: Callable[[str], object], s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises((OSError, ConfigError), match=r"Timeout|Read timeout"):
            access("s3://bucket/run")
        assert time.monotonic() - started < 60


def test_a_file_that_is_not_written_to_its_end_replaces_none(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    for store in (Store(f"s3://{bucket}/run"), Store(str(tmp_path))):
        store.write("table.csv", b"whole")
        with pytest.raises(UnicodeEncodeError), store.open_text("table.csv") as file:
            file.write("half\ud800")
        assert store.read("table.csv") == b"whole"
        with store.open_text("table.csv") as file:
            file.write("\u00e4\r\n" * 5_000_000)
        assert store.read("table.csv") == "\u00e4\r\n".encode() * 5_000_000


def test_a_server_that_is_gone_when_something_is_deleted_is_an_error_of_the_storage(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9"):
        Store("s3://bucket/run").delete("a.json")


def test_google_storage_that_does_not_answer_is_no_wait_of_a_quarter_of_an_hour() -> None:
    _, (options,) = open_filesystem("gs://anonymous@bucket/x")[0].__reduce__()
    assert (options["retry_time_limit"], options["anonymous"]) == (GCS_RETRY, True)
