"""Manifests in every form: what they name is read, kept up to date, and lies where they may point to."""

from __future__ import annotations

import base64
import csv
import http.server
import json
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from corpora import contents, labels, listed, read_all, write_files

from upl_ray.corpus.manifests import read_manifest
from upl_ray.corpus.read import read_images
from upl_ray.errors import ConfigError, JobError


def write_manifest(path: Path, files: list[str], suffix: str, **columns: list[str]) -> Path:
    path = path.with_suffix(suffix)
    records = [{"path": f, **{k: v[i] for k, v in columns.items()}} for i, f in enumerate(files)]
    if suffix == ".txt":
        path.write_text("\n".join(files) + "\n\n")
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl", ".parquet"])
def test_a_manifest_names_files_beside_it_and_elsewhere(tmp_path: Path, suffix: str) -> None:
    files = contents(12)
    write_files(tmp_path / "data", files)
    elsewhere = str(tmp_path / "other" / 'z, "é".jpg')
    write_files(tmp_path / "other", {'z, "é".jpg': b"far"})
    names = [*files, elsewhere]
    given = {} if suffix == ".txt" else {"label": [n[0] for n in names]}
    manifest = write_manifest(tmp_path / "data" / "list", names, suffix, **given)
    with pytest.raises(ConfigError, match=r"lies outside of .* set roots: \["):
        listed(tmp_path, manifest)
    corpus = listed(tmp_path, manifest, roots=(str(tmp_path / "other"),))
    assert read_all(corpus) == {**files, elsewhere: b"far"}
    assert labels(corpus) == {n: given["label"][i] if given else None for i, n in enumerate(names)}


def test_a_growing_manifest_adds_only_what_is_new_and_versions_supersede(tmp_path: Path) -> None:
    files = contents(10)
    write_files(tmp_path, files)
    names = list(files)
    manifest = write_manifest(tmp_path / "m", names[:8], ".csv", version=["1"] * 8)
    first = listed(tmp_path, manifest)
    write_manifest(tmp_path / "m", names, ".csv", version=["2", *["1"] * 9])
    second = listed(tmp_path, manifest)
    assert (first.added, second.added, second.images) == (8, 3, 10)
    assert read_all(second) == files
    assert [s.id for s in second.shards[: len(first.shards)]] == [s.id for s in first.shards]


def test_corrected_labels_and_moved_files_of_a_manifest_are_taken_over_by_the_same_shards(tmp_path: Path) -> None:
    files = contents(6)
    write_files(tmp_path, files)
    write_files(tmp_path / "moved", files)
    names, about = list(files), {"version": ["1"] * 6, "image_id": list(files)}
    first = listed(tmp_path, write_manifest(tmp_path / "m", names, ".csv", label=["cat"] * 6, **about))
    same = listed(tmp_path, write_manifest(tmp_path / "m", names, ".csv", label=["cat"] * 6, **about))
    assert (same.shards, same.labels_digest) == (first.shards, first.labels_digest)
    mended = listed(tmp_path, write_manifest(tmp_path / "m", names, ".csv", label=["cat", *["dog"] * 5], **about))
    assert labels(mended) == {n: "cat" if n == names[0] else "dog" for n in names}
    assert (mended.digest, mended.added) == (first.digest, 0)
    assert mended.labels_digest != first.labels_digest
    elsewhere = [f"moved/{n}" for n in names[:4]]
    moved = listed(tmp_path, write_manifest(tmp_path / "m", elsewhere, ".csv", **{k: v[:4] for k, v in about.items()}))
    for name in names:
        (tmp_path / name).unlink()
    assert (moved.added, moved.images) == (0, 4)
    assert read_all(moved) == {n: files[n] for n in names[:4]}
    assert [s.id for s in moved.shards] == [s.id for s in first.shards]


def test_another_file_under_the_same_id_is_another_image_unless_a_version_says_otherwise(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"a", "b.jpg": b"b"})
    listed(tmp_path, write_manifest(tmp_path / "m", ["a.jpg"], ".csv", image_id=["1"]))
    changed = listed(tmp_path, write_manifest(tmp_path / "m", ["b.jpg"], ".csv", image_id=["1"]))
    assert (changed.added, changed.images, read_all(changed)) == (1, 1, {"1": b"b"})


def test_a_file_under_two_ids_of_a_manifest_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_files(tmp_path, {"a.jpg": b"a", "b.jpg": b"b", "m.csv": b"path,id\na.jpg,1\na.jpg,2\nb.jpg,3\n"})
    assert read_all(listed(tmp_path, tmp_path / "m.csv")) == {"1": b"a", "2": b"a", "3": b"b"}
    assert "1 rows of " in caplog.text
    assert "name a file again under another id" in caplog.text


def test_manifests_that_give_one_id_to_two_files_share_no_shard(tmp_path: Path) -> None:
    """A shard's features are found by its id, whatever corpus it is of."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    about = {"image_id": ["1"], "version": ["1"]}
    first = listed(tmp_path, write_manifest(tmp_path / "train", ["a.jpg"], ".csv", **about))
    other = listed(tmp_path, write_manifest(tmp_path / "test", ["b.jpg"], ".csv", **about))
    again = listed(tmp_path, write_manifest(tmp_path / "copy", ["a.jpg"], ".csv", **about))
    assert first.shards[0].id == again.shards[0].id != other.shards[0].id


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_manifest(tmp_path: Path, suffix: str) -> None:
    write_files(tmp_path, {"a.jpg": b"a"})
    manifest = write_manifest(tmp_path / "m", ["a.jpg"], suffix)
    manifest.write_bytes(b"\xef\xbb\xbf" + manifest.read_bytes())
    assert read_all(listed(tmp_path, manifest)) == {"a.jpg": b"a"}


def test_what_a_spreadsheet_leaves_empty_and_two_notes_do_not_count(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"", "b.jpg": b""})
    (tmp_path / "m.csv").write_text("path,label,note,note,,\na.jpg,cat,x,y,,,,\n,\nb.jpg,dog,,,,,\n,,,,,\n , ,\n")
    assert labels(listed(tmp_path, tmp_path / "m.csv", labels="column")) == {"a.jpg": "cat", "b.jpg": "dog"}


def test_blanks_around_names_of_columns_do_not_count(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"a", "m.csv": b" path , label \na.jpg,cat\n"})
    corpus = listed(tmp_path, tmp_path / "m.csv", labels="column")
    assert (read_all(corpus), labels(corpus)) == ({"a.jpg": b"a"}, {"a.jpg": "cat"})


def test_other_encodings_are_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,label\na.jpg,café\n", encoding="cp1252")
    with pytest.raises(ConfigError, match=r"it is not UTF-8 \(byte 21\); save it in that encoding"):
        listed(tmp_path, tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("path,label\na.jpg,cat\n", encoding="utf-16")
    with pytest.raises(ConfigError, match="it is UTF-16, as some tables are exported; save it as UTF-8"):
        listed(tmp_path, tmp_path / "m.csv")


def test_numbers_with_gaps_are_labels_as_they_were_written(tmp_path: Path) -> None:
    column = pa.array([3.0, None, math.nan, 2.5], pa.float64())
    expected = ["3", None, None, "2.5"]
    pq.write_table(pa.table({"jpg": [b"x"] * 4, "label": column}), tmp_path / "bytes.parquet")
    assert list(labels(listed(tmp_path, tmp_path / "bytes.parquet")).values()) == expected
    names = [f"{i}.jpg" for i in range(4)]
    pq.write_table(pa.table({"uri": names, "label": column}), tmp_path / "names.parquet")
    assert list(labels(listed(tmp_path, tmp_path / "names.parquet")).values()) == expected


def test_a_file_that_a_manifest_names_in_vain_has_a_reason(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"x"})
    manifest = write_manifest(tmp_path / "m", ["a.jpg", "gone.jpg"], ".txt")
    assert read_all(listed(tmp_path, manifest)) == {"a.jpg": b"x", "gone.jpg": "missing file"}


def test_names_that_no_image_can_have_are_reasons_and_stop_nothing(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"x", "folder/b.jpg": b"y"})
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "ring.jpg").symlink_to(tmp_path / "ring.jpg")
    long, deep = "n" * 5000 + ".jpg", "n/" * 3000 + "x.jpg"
    names = ["a.jpg", "folder", "folder/", "a.jpg/c.jpg", "pipe.jpg", "ring.jpg", long, deep]
    found = read_all(listed(tmp_path, write_manifest(tmp_path / "m", names, ".txt"), shard_size=9))
    folder, missing = "not a file", "missing file"
    assert found == dict(zip(names, [b"x", folder, folder, missing, folder, missing, missing, missing], strict=True))


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("m.txt", "a.jpg\nb/../../secret.jpg\n", r"holds `\.\.`"),
        ("m.txt", "a.jpg\na.jpg\n", r"names 'a.jpg' twice \(row 2\)"),
        ("m.csv", "id,path\n3,a.jpg\n3,b.jpg\n", r"names '3' twice in its column 'id' \(row 2\); .*, or rename"),
        ("m.txt", "\n\n", "names no image"),
        ("m.csv", "path,label\n,\n", "names no image"),
        ("m.txt", "/etc/passwd.jpg\n", r"lies outside of .* set roots: \[/etc\] beside"),
        ("m.txt", "http://169.254.169.254/a.jpg\n", "metadata service"),
        ("m.txt", "s3://KEY:SECRET@bucket/a.jpg\n", "holds credentials"),
        ("m.txt", "x\0.jpg\n", "row 1 .*null character"),
        ("m.txt", "file:///etc/a.jpg\n", "lies outside of"),
        (
            "m.csv",
            "name,label\na.jpg,cat\n",
            r"Row 1 .* names no image in its columns 'name', 'label'; it needs a column .* uri or",
        ),
        ("m.jsonl", '{"uri": "a.jpg"}\n{"uri": \n', "cannot be read"),
        ("m.csv", "path\tlabel\na.jpg\tcat\n", r"its columns are parted by '\\t'; save it with commas"),
        ("m.csv", "path,label\na.jpg,cat\nb.jpg,dog, wet\n", "row 2 has more cells than columns; put cells that hold"),
        ("m.csv", 'path,label\na.jpg,cat\n"b.jpg,dog\nc.jpg,dog\n', "cannot be read: unexpected end of data"),
        ("m.csv", "\npath,label\na.jpg,cat\n", "its first line, '', names no columns; remove it"),
        ("m.csv", "sep=,\npath,label\na.jpg,cat\n", "its first line, 'sep=,', names no columns; remove it"),
        ("m.csv", "path,label\ra.jpg,cat\r", "its lines end at carriage returns; save it with line feeds"),
        ("m.csv", "path,label,label\na.jpg,cat,dog\n", "it has two columns 'label'; remove one"),
        ("m.jsonl", '["a.jpg"]\n', "every line must be an object"),
        (
            "m.jsonl",
            '{"image": {"path": "a.jpg"}, "label": 1}\n',
            r"columns 'image' \(dict\), 'label' \(int\); it needs",
        ),
        ("m.jsonl", '{"uri": "a.jpg"}\n{"image": [1, 2]}\n', r"Row 2 .* columns 'image' \(list\); it needs"),
        ("m.csv", "path;label\na.jpg;cat\n", r"its columns are parted by ';'; save it with commas"),
        ("m.txt", "file:///a%00.jpg\n", "null character"),
        ("m.txt", "file:///a/%2e%2e/b.jpg\n", r"holds `\.\.`"),
        ("m.txt", "file://host/a.jpg\n", "lies outside of"),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=match):
        listed(tmp_path, tmp_path / name)


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
        listed(tmp_path, tmp_path / "m.jsonl", roots=("s3://bucket/dir",))


@pytest.mark.parametrize("name", ["%2e%2e/secret", "a/%252e%2e/secret", ".\t./secret", "..\\secret", "..%2fsecret"])
def test_a_manifest_on_a_web_server_stays_in_its_folder(name: str, redirecting: str, tmp_path: Path) -> None:
    """Web clients undo escapes, drop white space and take a backslash for a slash."""
    (tmp_path / "m.jsonl").write_text(json.dumps({"uri": name}))
    with pytest.raises(ConfigError, match=r"row 1 of .* holds `\.\.`"):
        read_manifest(pafs.LocalFileSystem(), str(tmp_path / "m.jsonl"), f"{redirecting}/list", ())


@pytest.mark.parametrize("name", ["file:/etc/passwd", "data:image/png,x"])
def test_a_name_that_resembles_an_address_lies_below_the_manifest(name: str, tmp_path: Path) -> None:
    write_files(tmp_path, {"in/y.jpg": b"inside", "in/m.txt": f"{name}\ny.jpg\n".encode()})
    assert read_all(listed(tmp_path, tmp_path / "in" / "m.txt")) == {name: "missing file", "y.jpg": b"inside"}


def test_dots_in_names_are_no_way_out(tmp_path: Path) -> None:
    files = {"a..jpg": b"1", "...b.jpg": b"2", "c../d.jpg": b"3"}
    write_files(tmp_path, files)
    assert read_all(listed(tmp_path, write_manifest(tmp_path / "m", list(files), ".txt"))) == files


def test_labels_that_a_form_cannot_have_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"a/x.jpg": b"1"})
    with pytest.raises(ConfigError, match=r"labels 'column' does not fit .* use `folders` or `none`"):
        listed(tmp_path, tmp_path / "in", labels="column")
    with pytest.raises(ConfigError, match=r"labels 'folders' does not fit .* use `column` or `none`"):
        listed(tmp_path, write_manifest(tmp_path / "m", ["in/a/x.jpg"], ".txt"), labels="folders")


@pytest.mark.parametrize(
    "line", ['{"uri": "\\ud800.jpg"}', '{"uri": "a.jpg", "label": "\\udfff"}', "[" * 10**5, '{"uri": ' + "[" * 10**5]
)
def test_lines_of_a_manifest_that_cannot_be_read_are_refused_by_name(tmp_path: Path, line: str) -> None:
    (tmp_path / "m.jsonl").write_text('{"uri": "b.jpg"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"m\.jsonl.*cannot be read"):
        listed(tmp_path, tmp_path / "m.jsonl")


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
    corpus = listed(tmp_path, tmp_path / "m.txt", roots=(redirecting,))
    (shard,) = corpus.shards
    listing = corpus.listing(shard)
    assert listing["image_id"].to_pylist() == [f"{redirecting}/away/b.jpg", f"{redirecting}/stay/a.jpg"]
    assert read_images(shard.root, listing.slice(1)) == [b"image"]
    with pytest.raises(JobError, match=r"away/b\.jpg: the server answers 302"):
        read_images(shard.root, listing)


SEPARATORS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_lines_end_at_line_feeds_only(tmp_path: Path, separator: str) -> None:
    """Python takes these for ends of lines, too; JSON and people do not."""
    name, label = f"a{separator}b.jpg", f"x{separator}y"
    records = [{"uri": name, "label": label}, {"uri": "c.jpg", "label": "z"}]
    lines = [json.dumps(r, ensure_ascii=False) for r in records]
    files = {
        "m.jsonl": "\r\n".join(lines),
        "m.txt": f"{name}\r\nc.jpg\r\n",
        "m.csv": f"uri,label\r\n{name},{label}\r\nc.jpg,z\r\n",
    }
    for file, text in files.items():
        (tmp_path / file).write_bytes(text.encode())
        expected = dict.fromkeys((name, "c.jpg")) if file == "m.txt" else {name: label, "c.jpg": "z"}
        assert labels(listed(tmp_path, tmp_path / file)) == expected


@pytest.mark.parametrize("suffix", [".TXT", ".Csv", ".JSONL", ".PARQUET", ".Parquet"])
def test_suffixes_count_in_any_case(tmp_path: Path, suffix: str) -> None:
    write_files(tmp_path, {"a.jpg": b"a"})
    lower = write_manifest(tmp_path / "list", ["a.jpg"], suffix.lower())
    assert read_all(listed(tmp_path, lower.rename(tmp_path / f"LIST{suffix}"))) == {"a.jpg": b"a"}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("other", ["url", "image"])
def test_a_path_goes_before_an_address_elsewhere(tmp_path: Path, suffix: str, other: str) -> None:
    write_files(tmp_path, {"a.jpg": b"a"})
    record = {other: "https://example.org/a.jpg", "path": "a.jpg"}
    path = tmp_path / f"m{suffix}"
    if suffix == ".csv":
        path.write_text(f"{','.join(record)}\n{','.join(record.values())}\n")
    elif suffix == ".jsonl":
        path.write_text(json.dumps(record))
    else:
        pq.write_table(pa.Table.from_pylist([record]), path)
    assert read_all(listed(tmp_path, path)) == {"a.jpg": b"a"}


def test_file_addresses_lie_in_the_folder_of_their_path(tmp_path: Path) -> None:
    write_files(tmp_path, {"in/a b.jpg": b"a", "out/c.jpg": b"c"})
    names = [(tmp_path / "in" / "a b.jpg").as_uri(), f"file://{tmp_path}/out/c.jpg"]
    assert names[0].endswith("a%20b.jpg")
    manifest = write_manifest(tmp_path / "in" / "m", names, ".txt")
    with pytest.raises(ConfigError, match=r"out/c\.jpg' in row 2 .* lies outside of .* set roots: \[/.*/out\] beside"):
        listed(tmp_path, manifest)
    for roots in ((f"{tmp_path}/out",), (f"file://{tmp_path}/out",)):
        for uri in (str(manifest), manifest.as_uri()):
            assert read_all(listed(tmp_path, uri, roots=roots)) == {names[0]: b"a", names[1]: b"c"}


def test_absolute_names_through_a_link_lie_in_the_real_folder(tmp_path: Path) -> None:
    write_files(tmp_path, {"real/in/a.jpg": b"a", "real/out/c.jpg": b"c", "secret/s.jpg": b"s"})
    (tmp_path / "link").symlink_to("real")
    names = [f"{tmp_path}/link/in/a.jpg", f"{tmp_path}/link/out/c.jpg"]
    manifest = write_manifest(tmp_path / "link" / "in" / "m", names, ".txt")
    with pytest.raises(ConfigError, match=r"row 2 .* lies outside of"):
        listed(tmp_path, manifest)
    found = read_all(listed(tmp_path, manifest, roots=(f"{tmp_path}/link/out",)))
    assert found == {names[0]: b"a", names[1]: b"c"}
    manifest.write_text(f"{tmp_path}/link/secret/s.jpg\n")
    (tmp_path / "real" / "secret").symlink_to("../secret")
    with pytest.raises(ConfigError, match=r"row 1 .* lies outside of"):
        listed(tmp_path, manifest)


PIXELS, ENCODED = list(range(5000)), base64.b64encode(bytes(range(256)) * 20).decode()
WRONG = {
    "lists of pixels": [{"image": PIXELS, "label": 1}, {"image": PIXELS, "label": 2}],
    "structs with only paths": [{"image": {"path": "a.jpg"}}, {"image": {"path": "b.jpg"}}],
    "structs without bytes": [{"image": {"bytes": None, "path": "a.jpg"}}, {"image": {"bytes": None, "path": "b.jpg"}}],
    "numbers": [{"image": 1}, {"image": 2}],
    "base64": [{"image": ENCODED}, {"image": ENCODED[4:]}],
    "base64 with its type": [{"image": f"data:image/png;base64,{ENCODED}"}],
    "a long name twice": [{"uri": f"{'x' * 5000}.jpg"}] * 2,
    "a long name elsewhere": [{"uri": f"/{'x/' * 3000}a.jpg"}],
    "a long name with dots": [{"uri": f"{'x/' * 3000}../a.jpg"}],
    "long names of columns": [{"x" * 5000: 1, "y" * 5000: "2"}],
}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("case", WRONG)
def test_columns_that_hold_no_images_are_refused_in_a_short_sentence(tmp_path: Path, case: str, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(WRONG[case]), path)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in WRONG[case]))
    with pytest.raises(ConfigError) as error:
        listed(tmp_path, path)
    assert len(str(error.value).replace(str(tmp_path), "")) < 650
    assert str(error.value).endswith(".")


def test_names_of_class_numbers_in_a_manifest_are_read(tmp_path: Path) -> None:
    features = {"label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"path": ["a.jpg", "b.jpg", "c.jpg"], "label": [1, 0, -1]}).replace_schema_metadata(about)
    pq.write_table(table, tmp_path / "m.parquet")
    assert labels(listed(tmp_path, tmp_path / "m.parquet")) == {"a.jpg": "cat", "b.jpg": "dog", "c.jpg": None}
