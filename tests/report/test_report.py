"""Reports of made-up runs: rebuilt from storage alone, every name escaped, nothing loaded from elsewhere."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from report_pages import NASTY, Seen, page_of
from s3_server import S3Server

from upl_ray.errors import ConfigError
from upl_ray.report.page import PAGE, write_report
from upl_ray.storage.store import Store

ROOT = Path(__file__).parents[2]


def test_names_from_data_are_text_and_nothing_else(nasty: Store) -> None:
    seen = Seen(page_of(nasty))
    text = "".join(seen.text)
    for name in NASTY:
        assert name in text
    tags = [tag for tag, _ in seen.elements]
    assert tags.count("script") == 2  # the page's own, and its data
    assert not any(a.startswith("on") for _, attributes in seen.elements for a in attributes)
    assert all(a.get("src", "").startswith("data:image/webp;base64,") for t, a in seen.elements if t == "img")
    data = json.loads(next(t for t in seen.text if t.startswith('{"corpus"')))
    assert data["names"][0] == NASTY[0]


def test_the_page_needs_and_may_load_nothing(nasty: Store) -> None:
    seen = Seen(page_of(nasty))
    policy = next(a["content"] for t, a in seen.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.replace("style-src-attr 'unsafe-inline'", "")
    addresses = [a.get(k) or "" for t, a in seen.elements for k in ("src", "href", "xlink:href") if a.get(k)]
    assert [x for x in addresses if not x.startswith(("data:", "#", "tables/", "figures/", "labels/"))] == []
    assert not re.search(r"url\((?!#)", page_of(nasty))


def test_every_link_of_the_page_leads_somewhere(nasty: Store) -> None:
    seen = Seen(page_of(nasty))
    ids = [a["id"] for _, a in seen.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    for _, attributes in seen.elements:
        address = attributes.get("href") or attributes.get("xlink:href") or ""
        if address.startswith("#"):
            assert address[1:] in ids
        elif address and not address.startswith("data:"):
            nasty.read(f"report/{address}")
    for _, attributes in seen.elements:
        for target in (attributes.get("aria-labelledby") or "").split():
            assert target in ids


def test_pictures_say_what_they_are(nasty: Store) -> None:
    seen = Seen(page_of(nasty))
    assert all(a.get("alt") for t, a in seen.elements if t == "img")
    figures = [a for t, a in seen.elements if t == "svg" and a.get("role") == "img"]
    assert len(figures) >= 12
    assert all(a.get("aria-labelledby") for a in figures)


def test_a_rebuild_from_a_copy_of_the_storage_alone_is_the_same_page(nasty: Store, tmp_path: Path) -> None:
    shutil.copytree(nasty.uri, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "report")
    command = [sys.executable, "jobs/report.py", str(tmp_path / "copy")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    images = Path(nasty.read_json("run.json")["config"]["corpus"]["uri"])
    images.rename(images.with_name("away"))  # a rebuild must not look for the corpus
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    finally:
        images.with_name("away").rename(images)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "copy" / PAGE)
    assert (tmp_path / "copy" / PAGE).read_text() == page_of(nasty)


def test_a_report_that_is_there_is_not_made_again(nasty: Store) -> None:
    page = Path(nasty.uri) / PAGE
    before = page.stat().st_mtime_ns
    write_report(nasty)
    assert page.stat().st_mtime_ns == before
    write_report(nasty, again=True)
    assert page.stat().st_mtime_ns > before
    content = page.read_bytes()
    page.unlink()
    write_report(nasty)
    assert page.read_bytes() == content


def test_reports_load_neither_ray_nor_a_model(nasty: Store) -> None:
    code = (
        "import sys; from upl_ray.storage.step import Store; from upl_ray.report.page import write_report; "
        f"write_report(Store({nasty.uri!r}), again=True); "
        "print(sorted({'ray', 'open_clip'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_figures_are_written_as_png(nasty: Store) -> None:
    names = nasty.names("report/figures")
    assert len(names) >= 12
    for name in names:
        with Image.open(io.BytesIO(nasty.read(f"report/figures/{name}"))) as image:
            assert min(image.size) > 150


def test_a_report_in_object_storage_is_the_same_report(nasty: Store, s3: S3Server) -> None:
    bucket = s3.create_bucket()
    s3.upload(Path(nasty.uri), bucket, "run")
    remote = Store(f"s3://{bucket}/run")
    before = len(s3.requests(bucket))
    write_report(remote, again=True)
    assert remote.read(PAGE) == nasty.read(PAGE)
    for file in ("labels/predictions-upl.csv", "labels/fiftyone-upl/labels.json", "tables/rejected.csv"):
        assert remote.read(f"report/{file}") == nasty.read(f"report/{file}")
    kinds = {r.kind for r in s3.requests(bucket, before)}
    assert kinds <= {"GET", "HEAD", "PUT", "LIST"}


def test_a_folder_without_a_run_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No finished run"):
        write_report(Store(str(tmp_path)))
    (tmp_path / "run.json").write_text('{"status": "done"}')
    with pytest.raises(ConfigError, match="older version; run the job again"):
        write_report(Store(str(tmp_path)))
