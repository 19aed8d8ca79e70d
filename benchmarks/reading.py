"""Reading a corpus: the same photographs as files, tar and Parquet, here and in S3; and JPEG decoding, exact and fast.

python -m benchmarks.reading --folder photos/ --images 1024
python -m benchmarks.reading --folder photos/ --images 64 --decode
python -m benchmarks.reading --folder photos/ --images 100000 --features

Three processes: one lists the photographs and reads them, and what the S3 server of the tests (moto, on this machine)
sends to it are the bytes and requests; one decodes them to crops of 224 pixels; one only reads them. CPU time is
that of the last two, without the server and without their first image.

`--decode`: photographs enlarged to 12 and 2 megapixels, and as they are; the same crops by both ways of decoding, and
what the demo's backbones make of handwritten digits that were enlarged to 1,000 pixels.

`--features`: the feature step over each form, with one of the demo's backbones; do all forms give the same?
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from PIL import Image

from benchmarks.measure import hardware, interleaved, report
from tests.support.s3_server import S3Server
from upl_ray.config.settings import Backbone, Compute, Source
from upl_ray.corpus.read import read_each
from upl_ray.corpus.shards import list_corpus
from upl_ray.demo.digits import CLASSNAMES, write_digits
from upl_ray.pipeline.features import decode_chunks, feature_step, make_features, read_features
from upl_ray.storage.store import Store
from upl_ray.upl.backbones import resolve_backbone
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.images import EXTENSIONS, Geometry, center_crop, decode

FORMS = ("files", "tar", "parquet")
CROP = Geometry(224, 224)
ROW_GROUP = 1000


def photographs(folder: Path, images: int) -> list[Path]:
    """Every n-th photograph of a folder."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
    return files[:: max(1, len(files) // images)][:images]


def write_form(paths: list[Path], form: str, folder: Path) -> None:
    """The photographs in one form."""
    folder.mkdir()
    names = [f"{i:06d}{p.suffix.lower()}" for i, p in enumerate(paths)]
    if form == "parquet":
        table = pa.table({"image": [p.read_bytes() for p in paths], "label": [p.parent.name for p in paths]})
        pq.write_table(table, folder / "0.parquet", row_group_size=ROW_GROUP)
    elif form == "tar":
        with tarfile.open(folder / "0.tar", "w") as tar:
            for name, path in zip(names, paths, strict=True):
                tar.add(path, name)
    else:
        for name, path in zip(names, paths, strict=True):
            (folder / name).write_bytes(path.read_bytes())


def measure_here(uri: str, decodes: bool, warms_up: bool) -> dict[str, float]:
    """List and read the images of an address in this process: seconds, CPU milliseconds an image, added peak memory."""
    with tempfile.TemporaryDirectory() as storage:
        start = time.perf_counter()
        corpus = list_corpus(Store(storage), Source(uri=uri), 4096)
        listed, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if warms_up:  # connections and imports
            next(read_each(corpus.shards[0].root, corpus.listing(corpus.shards[0])))
        cpu = time.process_time()
        for shard in corpus.shards:
            rows = corpus.listing(shard)
            for _ in decode_chunks(shard.root, rows, [CROP], 64) if decodes else read_each(shard.root, rows):
                pass
        spent = time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"list_s": listed - start, "cpu_ms": 1e3 * spent / corpus.images, "more_mib": (peak - before) / 1024}


def measure_form(form: str, uri: str, size: int, images: int, server: S3Server | None) -> dict[str, Any]:
    """One row of the table."""
    bucket = uri.removeprefix("s3://").partition("/")[0]
    before = len(server.requests(bucket)) if server else 0
    command = [sys.executable, "-m", "benchmarks.reading", "--one", uri]

    def measure(*arguments: str) -> dict[str, float]:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    measure("--cold")
    asked = server.requests(bucket, before) if server else []
    decoded, read = measure("--decode"), measure()
    return {
        "form": form,
        "place": "S3" if server else "local",
        "list_s": decoded["list_s"],
        "read_ms": read["cpu_ms"],
        "decode_ms": decoded["cpu_ms"] - read["cpu_ms"],
        "images_a_core_s": 1e3 / decoded["cpu_ms"],
        "bytes_of_corpus": sum(r.length for r in asked if r.kind == "GET") / size if server else None,
        "requests_an_image": len(asked) / images if server else None,
        "more_mib": decoded["more_mib"],
    }


def forms(paths: list[Path], root: Path) -> list[dict[str, Any]]:
    """All forms, here and in S3."""
    rows = []
    server = S3Server(root / "requests.jsonl")
    try:
        bucket = server.create_bucket()
        os.environ.update(server.environment())  # for the processes of the rows
        for form in FORMS:
            write_form(paths, form, root / form)
            server.upload(root / form, bucket, form)
            size = sum(p.stat().st_size for p in (root / form).iterdir())
            rows.append(measure_form(form, str(root / form), size, len(paths), None))
            rows.append(measure_form(form, f"s3://{bucket}/{form}", size, len(paths), server))
    finally:
        server.stop()
    return rows


def enlarged(path: Path, size: tuple[int, int] | None) -> bytes:
    """A photograph as JPEG, with as many pixels; None: the file as it is."""
    if size is None:
        return path.read_bytes()
    out = io.BytesIO()
    Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=92)
    return out.getvalue()


def decoding(paths: list[Path], repeats: int) -> list[dict[str, Any]]:
    """CPU time of decoding and cropping one image, both ways, and how far the crops differ."""
    rows = []
    for name, size in (("4000 x 3000", (4000, 3000)), ("1632 x 1224", (1632, 1224)), ("as they are", None)):
        files = [enlarged(p, size) for p in (paths[:8] if size else paths)]

        def crops(draft: int, files: list[bytes] = files) -> list[Any]:
            return [center_crop(decode(f, draft=draft), CROP) for f in files]

        times = interleaved({"exact": partial(crops, 0), "fast": partial(crops, 448)}, repeats)
        exact, fast = (1e3 * median(times[k]) / len(files) for k in ("exact", "fast"))
        far = [np.abs(a.astype(float) - b).mean() for a, b in zip(crops(0), crops(448), strict=True)]
        rows.append(
            {"photographs": name, "exact_ms": exact, "fast_ms": fast, "ratio": exact / fast, "levels": max(far)}
        )
    return rows


def digits(root: Path) -> list[dict[str, Any]]:
    """Features and zero-shot labels of enlarged digits by the demo's backbones, both ways."""
    write_digits(root / "digits")
    files = [enlarged(p, (1000, 1000)) for p in sorted((root / "digits" / "scored").rglob("*.png"))]
    rows = []
    for name in ("vit_a", "vit_b", "rn"):
        clip = ClipModel(resolve_backbone(Backbone(model=f"demo:{name}")), device="cpu")
        geometry = clip.spec.geometry
        draft = 2 * max(geometry.height, geometry.width)
        a, b = (
            clip.encode_crops(np.stack([center_crop(decode(f, draft=d), geometry) for f in files])).astype(np.float32)
            for d in (0, draft)
        )
        texts = clip.encode_texts([f"a photo of the digit {n}." for n in CLASSNAMES]).numpy()
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        same = ((a @ texts.T).argmax(1) == (b @ texts.T).argmax(1)).mean()
        rows.append(
            {
                "backbone": name,
                "mean_cosine": float(cosine.mean()),
                "worst": float(cosine.min()),
                "same_labels": float(same),
            }
        )
    return rows


def features_of(place: Path, storage: str, spec: ClipSpec) -> npt.NDArray[np.float16]:
    """Features of all photographs of a form, in their order."""
    corpus = list_corpus(Store(storage), Source(uri=str(place)), 4096)
    step = feature_step(Store(storage), spec)
    make_features([corpus], [spec], {spec.name: step}, Compute(), {spec.name: {s.id for s in corpus.shards}})
    found: dict[int, npt.NDArray[np.float16]] = {}
    for shard in corpus.shards:
        for image_id, row in zip(*read_features(step, shard), strict=True):
            found[int(Path(image_id.rpartition("!")[2]).stem)] = row
    return np.stack([found[i] for i in sorted(found)])


def same_features(paths: list[Path], root: Path) -> list[dict[str, Any]]:
    """How far the features of tar and Parquet are from those of the folder."""
    spec, found = resolve_backbone(Backbone(model="demo:vit_b")), {}
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    for form in FORMS:
        write_form(paths, form, root / form)
        found[form] = features_of(root / form, str(root / f"run-{form}"), spec)
    of_files = found["files"].astype(np.float32)
    return [
        {
            "form": form,
            "images": len(x),
            "equal_rows": int((x == found["files"]).all(1).sum()),
            "largest_difference": float(np.abs(x.astype(np.float32) - of_files).max()),
        }
        for form, x in found.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--features", action="store_true")
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_here(options.one, options.decode, not options.cold)))
        return
    paths = photographs(options.folder, options.images)
    with tempfile.TemporaryDirectory() as root:
        if options.features:
            report("features", same_features(paths, Path(root)), hardware=hardware("cpu"))
        elif options.decode:
            report("decoding", decoding(paths, options.repeats), hardware=hardware("cpu"))
            report("digits", digits(Path(root)), hardware=hardware("cpu"))
        else:
            size = sum(p.stat().st_size for p in paths)
            report("reading", forms(paths, Path(root)), images=len(paths), bytes=size, hardware=hardware("cpu"))


if __name__ == "__main__":
    main()
