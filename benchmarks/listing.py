"""Listing Parquet files on the cluster: seconds, and the driver's memory, by files and by images.

python -m benchmarks.listing --files 1000 10000 --rows 100 1000

Each file has rows of one byte and a label. Each line is from one process, which starts Ray on this machine, lists all
files, and lists them again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import hardware, report
from upl_ray.cluster.connect import RayCluster
from upl_ray.config.settings import Compute, Source
from upl_ray.pipeline.inputs import list_images
from upl_ray.storage.store import Store


def write_files(folder: Path, files: int, rows: int) -> None:
    """Parquet files of equal content, linked."""
    folder.mkdir()
    first = folder / "000000.parquet"
    pq.write_table(pa.table({"image": [b"x"] * rows, "label": [f"class {i % 10}" for i in range(rows)]}), first)
    for i in range(1, files):
        os.link(first, folder / f"{i:06d}.parquet")


def measure_here(folder: Path) -> dict[str, float]:
    """List a folder twice in this process."""
    with tempfile.TemporaryDirectory() as storage:
        cluster, store, compute = RayCluster(Compute()), Store(storage), Compute()
        cluster.start("listing")
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        corpus = list_images(store, Source(uri=str(folder)), compute, "corpus", cluster)
        first = time.perf_counter()
        list_images(store, Source(uri=str(folder)), compute, "corpus", cluster)
        again = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"images": corpus.images, "shards": len(corpus.shards), "first_s": first - start, "again_s": again - first}
    return found | {"driver_mib": peak / 1024, "of_listing_mib": (peak - before) / 1024}


def main() -> None:
    """One row for each number of files and of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure_here(args.one)))
        return
    table = []
    with tempfile.TemporaryDirectory() as root:
        for files in args.files:
            for rows in args.rows:
                write_files(Path(root) / "in", files, rows)
                command = [sys.executable, "-m", "benchmarks.listing", "--one", f"{root}/in"]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                table.append({"files": files, **json.loads(done.stdout.splitlines()[-1])})
                shutil.rmtree(Path(root) / "in")
    report("listing", table, hardware=hardware("cpu"))


if __name__ == "__main__":
    main()
