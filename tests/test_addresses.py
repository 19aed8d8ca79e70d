"""Addresses that would tell a secret or lead where nobody may go, and text that would command a terminal."""

from __future__ import annotations

import http.server
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import yaml

from upl_ray.addresses import flaw, shown
from upl_ray.artifacts import Store
from upl_ray.command_line import load_config, load_predict, run_job
from upl_ray.config import Config, ConfigError, JobError, Source
from upl_ray.corpus import list_corpus
from upl_ray.manifests import read_manifest
from upl_ray.predict_config import Predict
from upl_ray.reading import read_images

ROOT = Path(__file__).parents[1]
SECRET = "aB3/xY+9"
TELLING = (
    f"s3://KEY:{SECRET}@bucket/x",
    f"s3://{SECRET.replace('/', '')}@bucket/x",
    f"https://user:{SECRET}@host/x",
    f"simplecache::s3://KEY:{SECRET}@bucket/x",
    f"https://host/x?sig={SECRET}",
    f"https://host/x?a=1&X-Amz-Signature={SECRET}",
    f"s3://bucket/x?access_key=K&secret_key={SECRET}",
    f"https://host/x?api-key={SECRET}",
    f"https://host/x?a=b&X_PWD={SECRET}",
    f"redis://:{SECRET}@host:6379",
    f"s3a://{SECRET.replace('/', '')}@bucket/x",
    f"gcs://{SECRET.replace('/', '')}@bucket/x",
    f"git+https://{SECRET.replace('/', '')}@host/x",
    f"s3://KEY:12345/{SECRET}@bucket/x",
    f"gs://KEY:1/{SECRET}@bucket/x",
    f"ftp://user:{SECRET}@host/x",
    f"s3://KEY:{SECRET}@{SECRET}@bucket/x",
    f"https://host/x?a=1;sig={SECRET};b=2",
    f"https://host/x?sig='{SECRET}'",
)
LEADING = (
    "http://169.254.169.254/latest/meta-data",
    "http://good.example@169.254.169.254/",
    "http://[fd00:ec2::254]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[fe80::1%25eth0]/",
    "http://METADATA.google.internal./",
    "http://2852039166/",
    "http://0xa9fea9fe/",
    "http://0251.0376.0251.0376/",
    "simplecache::http://169.254.169.254/",
    "http://169.254.169.254::s3://bucket/x",
    "http://169.254.\t169.254/",
    "http://１６９.２５４.１６９.２５４/",  # noqa: RUF001
    "http://169。254。169。254/",
    "http://①⑥⑨.②⑤④.①⑥⑨.②⑤④/",
    "http://169.254.169.254\uff1a80/",
    "http://metadata。google。internal。/",
    "http://[::169.254.169.254]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::a9fe:a9fe]/",
    "http://[2002:a9fe:a9fe::]/",
    "http://[fd00:ec2::23]/",
    "http://[fd20:ce::254]/",
    "http://100.100.100.200/",
    "http://[::ffff:100.100.100.200]/",
    "http://192.0.0.192/",
    "http://168.63.129.16/machine",
    "http://metadata.goog/",
)
PLAIN = (
    "s3://bucket/a:b@c.jpg",
    "s3://bucket/2024?.tar",
    "http://localhost:9000/bucket/a@b.jpg",
    "http://minio:9000",
    "abfs://container@account.dfs.core.windows.net/x",
    "https://host/x.jpg?size=3&design=4&author=me",
    "/data/user:name@host",
    "ray://head:10001",
    "https://[2001:db8::1]:80/x",
    "https://[2001:db8::1]:80/a@b.jpg",
    "https://[2001:db8::1]/a@b.jpg",
    "http://[2002:808:808::]/x",
    "http://100.100.100.201/x",
    "sftp://me@host/x",
    "ftp://anonymous@host/x",
    "ftp://anonymous:@host/x",
    "s3://bucket/a&token=3/img.jpg",
    "s3://b/k;secretary=1.jpg",
    "s3://metadata/x",
    "not http://[ an address",
)


@pytest.mark.parametrize("address", [*TELLING, *LEADING])
def test_addresses_with_secrets_or_to_metadata_are_refused_without_repeating_them(address: str) -> None:
    told = flaw(address)
    assert told is not None
    assert SECRET not in told


@pytest.mark.parametrize("address", PLAIN)
def test_other_addresses_are_not(address: str) -> None:
    assert flaw(address) is None
    assert shown(address) == address


@pytest.mark.parametrize(
    "hostile",
    [
        "a://x?" + ";token" * 17_000,
        "a://x?" + "&token" * 17_000,
        "a://x?" + ";" * 100_000,
        "a://x?" + "a-" * 50_000,
        "://" * 33_000,
        "://" * 33_000 + "@",
        "://:1/" * 16_000 + "@",
        "s3://" * 20_000 + "@",
        "s3://" + "a:" * 50_000,
        "s3://" + "@" * 100_000,
        "s3://x@" * 14_000,
        "http://" + "[" * 100_000,
        "http://x" + "\u0301\u0323" * 50_000,
        "a" * 100_000 + "://x",
        "::" * 50_000 + "a://x",
        "x " * 50_000,
    ],
    ids=lambda text: text[:12].encode("unicode_escape").decode(),
)
@pytest.mark.timeout(60)
def test_hostile_text_takes_no_time_that_grows_faster_than_it(hostile: str) -> None:
    flaw(hostile)
    shown(hostile)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("s3://KEY:a/b@bucket/x and s3://KEY:c@b", "s3://***@bucket/x and s3://***@b"),
        ("uri='https://tok@h/x?a=1&sig=abc;d&b=2'.", "uri='https://***@h/x?a=1&sig=***&b=2'."),
        ("url=URL('https://h/x?a=1&X-Amz-Signature=abc')", "url=URL('https://h/x?a=1&X-Amz-Signature=***')"),
        ("GET /x?author=me;api_key=abc", "GET /x?author=me;api_key=***"),
    ],
)
def test_what_is_no_secret_is_still_told(text: str, told: str) -> None:
    assert shown(text) == told


FIELDS: list[tuple[type[Config | Predict], str, Any]] = [
    (Config, "storage_path", ()),
    (Config, "corpus.uri", ()),
    (Config, "corpus.uri", list),
    (Config, "corpus.roots", list),
    (Config, "scored.uri", ()),
    (Config, "validation.uri", ()),
    (Config, "classnames", ()),
    (Config, "backbones", list),
    (Config, "dataset.root", ()),
    (Config, "compare.templates", ()),
    (Config, "compute.ray_address", ()),
    (Predict, "classifier", ()),
    (Predict, "storage_path", ()),
    (Predict, "model", ()),
    (Predict, "pretrained", ()),
]
GOOD = {
    Config: {"corpus": {"uri": "/x"}, "classnames": ["a", "b"], "backbones": ["RN50/openai"], "storage_path": "/run"},
    Predict: {"classifier": "/x", "corpus": {"uri": "/y"}},
}


@pytest.mark.parametrize("address", [TELLING[0], TELLING[5], LEADING[0]])
@pytest.mark.parametrize(("model", "field", "wrap"), FIELDS)
def test_every_field_refuses_them_by_name(
    model: type[Config | Predict], field: str, wrap: Any, address: str, tmp_path: Path
) -> None:
    data: dict[str, Any] = json.loads(json.dumps(GOOD[model]))
    *section, name = field.split(".")
    (data.setdefault(section[0], {}) if section else data)[name] = [address] if wrap else address
    (tmp_path / "job.yaml").write_text(yaml.dump(data))
    load: Any = load_config if model is Config else load_predict
    with pytest.raises(ConfigError) as error:
        load([str(tmp_path / "job.yaml")], tmp_path)
    assert field in str(error.value)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        'corpus: {uri: "s3://KEY:%s@bucket/p" labels: folders}',
        'corpus: {uri: "s3://KEY:%s@bucket/p}',
        "corpus: {uri: s3://KEY:%s@bucket/p, labels: folders]",
        "storage_path: !!int s3://KEY:%s@bucket/p",
        "storage_path: !s3://KEY:%s@bucket/p x",
        "corpus: s3://KEY:%s@bucket/p: x",
        "s3://KEY:%s@bucket/p: x",
    ],
)
def test_a_file_that_is_no_yaml_tells_no_part_of_a_secret(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    parts = [f"{i:03d}Secret/" for i in range(12)]
    (tmp_path / "job.yaml").write_text(text % "".join(parts))
    assert run_job(lambda: bool(load_config([str(tmp_path / "job.yaml")], tmp_path))) == 2
    told = "".join(capsys.readouterr())
    assert "job.yaml" in told
    assert [p for p in parts if p in told] == []


@pytest.mark.parametrize("job", ["upl", "predict", "report"])
def test_a_secret_on_the_command_line_is_not_repeated(job: str, tmp_path: Path) -> None:
    arguments = {
        "upl": ["--storage-path", TELLING[0]],
        "predict": [TELLING[0], "/images"],
        "report": ["run", f"--storage-path={TELLING[0]}"],
    }[job]
    command = [sys.executable, f"jobs/{job}.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "holds credentials" in done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_errors_and_log_lines_move_no_cursor_and_tell_no_secret(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger("upl_ray"), "level", logging.INFO)
    nasty = f"\x1b]0;title\x07 \r\x9b2J \u202ereversed\u2028 {TELLING[0]} {TELLING[5]}"

    def body() -> int:
        logging.getLogger("upl_ray.test").warning("%s", nasty)
        raise JobError(nasty)

    assert run_job(body) == 1
    out, err = capfd.readouterr()
    for text in (out, err):
        assert not set("\x1b\x07\r\x9b\u202e\u2028") & set(text)
        assert SECRET not in text
        assert "reversed" in text
    assert "\\x1b]0;title\\x07" in err
    assert len(err.splitlines()) == 2


OUTSIDE = (
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "/etc/passwd",
    "../x.jpg",
    "a/../../b.jpg",
    "s3://bucket-evil/x.jpg",
    "s3://bucket/dir-evil/x.jpg",
    "S3://bucket/dir/x.jpg",
    "s3://bucket/dir/../evil.jpg",
    "simplecache::s3://bucket/dir/x.jpg",
    "zip://x.jpg::s3://bucket/dir/a.zip",
    "http://localhost/x.jpg",
    "https://bucket/dir/x.jpg",
    "s3://bucket/dir@evil/x.jpg",
    "s3://bucket/dir/%2e%2e/x.jpg",
    "s3://bucket/dir/.%2E/x.jpg",
    "s3://bucket/dir/a/%2e%2e%2f%2e%2e/x.jpg",
    "s3://bucket/dir/%252e%252e/x.jpg",
    "s3://bucket/dir/..\\x.jpg",
    "s3://bucket/dir/.\t./x.jpg",
    "s3://bucket/dir/..?x.jpg",
    "s3://bucket/dir/..#x.jpg",
    "s3://bucket/dir/a%5c..%5C../x.jpg",
    "s3://bucket/dir/a.jpg?X-Amz-Signature=1",
    "http://169.254.169.254/x.jpg",
    "x\0.jpg",
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps({"uri": name}) + "\n")
    with pytest.raises(ConfigError, match="row 1 of the manifest"):
        list_corpus(Store(str(tmp_path / "run")), Source(uri=str(tmp_path / "m.jsonl"), roots=("s3://bucket/dir",)), 9)


@pytest.mark.parametrize("name", ["%2e%2e/secret", "a/%252e%2e/secret", ".\t./secret", "..\\secret", "..%2fsecret"])
def test_a_manifest_on_a_web_server_stays_in_its_folder(name: str, redirecting: str, tmp_path: Path) -> None:
    """Web clients undo escapes, drop white space and take a backslash for a slash."""
    (tmp_path / "m.jsonl").write_text(json.dumps({"uri": name}))
    with pytest.raises(ConfigError, match=r"row 1 of .* holds `\.\.`"):
        read_manifest(pafs.LocalFileSystem(), str(tmp_path / "m.jsonl"), f"{redirecting}/list", ())


@pytest.mark.parametrize("name", ["%2e%2e/x.jpg", "..%2fx.jpg", "..\\x.jpg", "file:/etc/passwd", "data:image/png,x"])
def test_what_only_looks_like_an_address_is_a_name_below_the_manifest(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"outside")
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "y.jpg").write_bytes(b"inside")
    (inside / "m.txt").write_text(f"{name}\ny.jpg\n")
    corpus = list_corpus(Store(str(tmp_path / "run")), Source(uri=str(inside / "m.txt")), 9)
    (shard,) = corpus.shards
    assert sorted(read_images(shard.root, corpus.listing(shard)), key=str) == [b"inside", "missing file"]


@pytest.fixture
def redirecting() -> Iterator[str]:
    """A web server that sends `/away/*` to a secret of its own, and gives bytes for all else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            away = self.path.startswith("/away/")
            self.send_response(302 if away else 200)
            body = b"moved" if away else b"secret" if self.path == "/secret" else b"image"
            if away:
                self.send_header("Location", "/secret")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815  # the name that http.server looks for

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_a_web_server_cannot_send_the_job_elsewhere(redirecting: str, tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text(f"{redirecting}/stay/a.jpg\n{redirecting}/away/b.jpg\n")
    corpus = list_corpus(Store(str(tmp_path / "run")), Source(uri=str(tmp_path / "m.txt"), roots=(redirecting,)), 9)
    (shard,) = corpus.shards
    listing = corpus.listing(shard)
    assert listing["image_id"].to_pylist() == [f"{redirecting}/away/b.jpg", f"{redirecting}/stay/a.jpg"]
    assert read_images(shard.root, listing.slice(1)) == [b"image"]
    with pytest.raises(JobError, match=r"away/b\.jpg: the server answers 302"):
        read_images(shard.root, listing)
