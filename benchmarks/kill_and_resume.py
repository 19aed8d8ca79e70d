"""A real corpus from object storage to object storage, the job killed twice on the way: nothing is lost or doubled.

python -m benchmarks.kill_and_resume --folder caltech-101/101_ObjectCategories --split split_zhou_Caltech101.json

The photographs are put into an S3 server on this machine (moto), and the job runs over them with the demo's three
backbones (which know digits: its accuracy says nothing) and the class names of the split (CoOp's format). Its whole
process group is killed with SIGKILL when a third of the features is committed, and again after the first checkpoint of
training. The third run must end with every image encoded once by each backbone and predicted once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import yaml
from moto.server import ThreadedMotoServer

from benchmarks.measure import hardware, report
from upl_ray.storage.store import Store
from upl_ray.upl.images import EXTENSIONS

BUCKET = "photographs"


def serve_photographs(folder: Path) -> int:
    """Start an S3 server that holds the photographs, and point the environment to it; returns how many."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_EC2_METADATA_DISABLED="true")
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    files = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in EXTENSIONS]

    def put(path: Path) -> None:
        client.put_object(Bucket=BUCKET, Key=f"images/{path.relative_to(folder)}", Body=path.read_bytes())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, files))
    return len(files)


def run_until(config: Path, stop: Callable[[], bool]) -> tuple[float, dict[str, Any] | None]:
    """Seconds of one run of the job, and its last line, or None where it was killed because `stop` said so."""
    started = time.monotonic()
    command = [sys.executable, "jobs/upl.py", str(config)]
    environment = {**os.environ, "PYTHONPATH": "."}
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    while job.poll() is None:
        if stop():
            os.killpg(job.pid, signal.SIGKILL)
            job.communicate()
            return time.monotonic() - started, None
        time.sleep(0.2)
    out, _ = job.communicate()
    return time.monotonic() - started, json.loads(out.splitlines()[-1])


def commits(store: Store, step: str) -> list[tuple[str, dict[str, Any]]]:
    """(folder, commit) of every finished shard of a step."""
    folders = sorted({k.split("/")[0] for k in keys() if k.startswith(f"{step}-")})
    return [(f, store.read_json(f"{f}/commits/{c}")) for f in folders for c in store.names(f"{f}/commits")]


def keys() -> list[str]:
    """Keys of the storage, relative to it."""
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="run/")
    return [o["Key"].removeprefix("run/") for page in pages for o in page.get("Contents", [])]


def ids_of(store: Store, folder: str, parts: list[str]) -> list[str]:
    """Image ids in some parts of an step."""
    return [i for p in parts for i in store.read_table(f"{folder}/{p}", ["image_id"])["image_id"].to_pylist()]


def main() -> None:
    """Run, kill, run, kill, run, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    args = parser.parse_args()
    names = sorted({(label, name) for _, label, name in json.loads(args.split.read_text(encoding="utf-8"))["train"]})
    images, store = serve_photographs(args.folder), Store(f"s3://{BUCKET}/run")
    section = {
        "corpus": {"uri": f"s3://{BUCKET}/images"},
        "classnames": [name for _, name in names],
        "backbones": ["demo:vit_b", "demo:vit_a", "demo:rn"],
        "storage_path": store.uri,
        "views": {"count": 4},
        "train": {"members": 4, "epochs": 10, "checkpoint_every": 1},
        "compute": {"shard_size": 512},
    }
    third = images // 512  # commits, of three backbones
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "job.yaml"
        config.write_text(yaml.safe_dump(section), encoding="utf-8")
        stops = [
            lambda: sum(k.startswith("features-") and "/commits/" in k for k in keys()) >= third,
            lambda: any("/checkpoints/" in k for k in keys()),
            lambda: False,
        ]
        rows: list[dict[str, Any]] = []
        for stop in stops:
            seconds, last = run_until(config, stop)
            done = sum(c["rows"] for _, c in commits(store, "features"))
            rows.append({"run": len(rows) + 1, "ended": (last or {}).get("status", "killed"), "seconds": seconds})
            rows[-1]["committed (image, backbone) pairs"] = done
    assert last is not None
    per_backbone = Counter[str]()
    doubled = 0
    for folder_name in sorted({f for f, _ in commits(store, "features")}):
        ids = [i for f, c in commits(store, "features") if f == folder_name for i in ids_of(store, f, c["parts"])]
        per_backbone[folder_name.rpartition("-")[0]] = len(set(ids))
        doubled += len(ids) - len(set(ids))
    manifest = Store(last["predictions"]).read_json("manifest.json")
    predicted = ids_of(store, last["predictions"].rpartition("/")[2], manifest["parts"])
    facts = {
        "images": images,
        "rejected": last["rejected"],
        "features": dict(per_backbone),
        "doubled features": doubled,
        "predicted": len(predicted),
        "predicted once": len(set(predicted)),
        "nothing lost": len(predicted) == len(set(predicted)) == images - last["rejected"]
        and set(per_backbone.values()) == {images - last["rejected"]},
    }
    report("kill_and_resume", rows, **facts, hardware=hardware("cpu"))
    print(json.dumps(facts))
    os._exit(0 if facts["nothing lost"] and not doubled else 1)  # moto's threads do not end by themselves


if __name__ == "__main__":
    main()
