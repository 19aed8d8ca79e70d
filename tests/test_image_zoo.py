import io
import json
import os
import random
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from PIL import Image
from torchvision.transforms import Compose
from zoo import encode, picture, zoo

import upl_ray
from upl_ray.artifacts import Store
from upl_ray.config import Source
from upl_ray.corpus import list_corpus
from upl_ray.embed import decode_chunk
from upl_ray.images import FORMATS, Geometry, Rejected, center_crop, decode

ZOO = zoo()
GEOMETRY = Geometry(32, 32)


def judged(data: bytes) -> Any:
    """A crop or a reason; whatever else is raised fails the test."""
    try:
        return center_crop(decode(data), GEOMETRY)
    except Rejected as error:
        return str(error)


def printable(name: str) -> str:
    return name[:40].encode("unicode_escape").decode()


def test_the_zoo_is_large_enough() -> None:
    assert len(ZOO) >= 60
    assert sum(b.usable is False for b in ZOO.values()) >= 30


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(ZOO), ids=printable)
def test_every_file_gives_a_crop_or_a_reason(name: str) -> None:
    beast = ZOO[name]
    found = judged(beast.data)
    if isinstance(found, str):
        assert beast.usable is not True, found
        assert found.isprintable()
        assert 0 < len(found) < 300
    else:
        assert beast.usable is not False
        assert (found.shape, found.dtype) == ((32, 32, 3), np.uint8)
        if beast.same:
            assert np.array_equal(found, judged(beast.same))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n, b in ZOO.items() if b.usable], ids=printable)
def test_crops_of_odd_files_equal_open_clips(name: str) -> None:
    transform = open_clip.image_transform(32, is_train=False)
    assert isinstance(transform, Compose)
    uint8 = Compose(
        [t for t in transform.transforms if type(t).__name__ not in ("ToTensor", "MaybeToTensor", "Normalize")]
    )
    data = ZOO[name].data
    assert np.array_equal(center_crop(decode(data), GEOMETRY), np.asarray(uint8(Image.open(io.BytesIO(data)))))


@pytest.mark.filterwarnings("ignore")
def test_nothing_of_a_zoo_in_a_folder_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    folder.mkdir()
    for name, beast in ZOO.items():
        (folder / name).write_bytes(beast.data)
    corpus = list_corpus(Store(str(tmp_path / "storage")), Source(uri=str(folder)), shard_size=20)
    seen: dict[str, str] = {}
    for shard in corpus.shards:
        chunk = decode_chunk(shard.root, corpus.listing(shard), [GEOMETRY, Geometry(48, 40)])
        assert chunk[GEOMETRY.key].shape == (shard.rows, 32, 32, 3)
        seen |= dict(zip(chunk["image_ids"], chunk["reasons"], strict=True))
    assert set(seen) == set(ZOO)
    for name, beast in ZOO.items():
        if beast.usable is not None:
            assert bool(seen[name]) is not beast.usable, name


def test_no_file_of_the_zoo_takes_much_memory(tmp_path: Path) -> None:
    """Each is decoded in a process that may not have more than 2 GB, so a greedy one would be a reason or a crash."""
    for i, beast in enumerate(ZOO.values()):
        (tmp_path / str(i)).write_bytes(beast.data)
    code = (
        "import sys, warnings, pathlib; warnings.simplefilter('ignore')\n"
        "from upl_ray.images import *\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: center_crop(decode(path.read_bytes()), Geometry(224, 224))\n"
        "    except Rejected as error: assert 'emory' not in str(error), (path, error)\n"
        "print('all')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(upl_ray.__file__).parent.parent,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)),
    )
    assert done.stdout.strip() == "all", done.stderr


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A valid file with bits flipped, bytes overwritten, parts cut, doubled, moved or taken from another file."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(min(len(data), rng.choice([32, 200, len(data)])))
        length = rng.randrange(1, min(64, len(data)) + 1)
        kind = rng.randrange(8)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice([0, 1, 127, 128, 255])
        elif kind == 2:
            data[at : at + 4] = rng.choice(
                [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\x00\x00\xff\xff"]
            )
        elif kind == 3:
            data = data[: max(1, at)]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            del data[at : at + length]
            data = data or bytearray(b"\x00")
        elif kind == 6:
            other = rng.choice(seeds)
            data[at : at + length] = other[at : at + length]
        else:
            data[at:at] = rng.randbytes(length)
        data = data or bytearray(b"\x00")
    return bytes(data)


def seed_files() -> list[bytes]:
    """Small valid files of every format and many modes; also formats that only the names claim to be images."""
    small = {mode: picture(mode, (40, 30)) for mode in ("RGB", "L", "P", "RGBA", "CMYK", "1", "LA")}
    files = [encode(small[m], "JPEG", progressive=p) for m in ("RGB", "L", "CMYK") for p in (False, True)]
    files += [encode(small[m], "PNG") for m in ("RGB", "L", "P", "RGBA", "1", "LA")]
    files += [encode(small[m], "WEBP") for m in ("RGB", "RGBA")] + [encode(small["RGB"], "WEBP", lossless=True)]
    files += [encode(small[m], "GIF") for m in ("L", "P")] + [encode(small[m], "BMP") for m in ("RGB", "L", "P", "1")]
    files += [
        encode(small["RGB"], "TIFF", compression=c)
        for c in ("raw", "tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate")
    ]
    files += [
        encode(small["1"], "TIFF", compression="group4"),
        encode(small["RGB"], "AVIF"),
        encode(small["RGB"], "DDS"),
    ]
    frames = [picture("P", (40, 30), seed=i) for i in range(3)]
    return files + [
        encode(frames[0], f, save_all=True, append_images=frames[1:]) for f in ("GIF", "WEBP", "PNG", "TIFF")
    ]


def fuzz(first: int, last: int) -> dict[str, int]:
    """Judge mutated files number `first` to `last`; their numbers make them, so each can be had again."""
    seeds, outcomes = seed_files(), {"crop": 0, "reason": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(first, last):
            print(number, file=sys.stderr)
            found = judged(mutated(random.Random(number), seeds))
            outcomes["reason" if isinstance(found, str) else "crop"] += 1
            if isinstance(found, str):
                assert found.isprintable()
    return outcomes


def fuzz_in_a_child(first: int, last: int) -> dict[str, int]:
    """The same in a process of its own with bounded memory: a crash in a C library fails the test with its number."""
    code = f"import json, test_image_zoo; print(json.dumps(test_image_zoo.fuzz({first}, {last})))"
    path = f"{Path(upl_ray.__file__).parent.parent}:{Path(__file__).parent}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (400, 400)),
    )
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    outcomes: dict[str, int] = json.loads(done.stdout)
    return outcomes


def test_a_thousand_mutated_files_give_crops_or_reasons() -> None:
    outcomes = fuzz_in_a_child(0, 1000)
    assert sum(outcomes.values()) == 1000
    assert min(outcomes.values()) > 100  # mutations are neither harmless nor all fatal


@pytest.mark.slow
def test_ten_thousand_mutated_files_give_crops_or_reasons() -> None:
    outcomes = fuzz_in_a_child(1000, 11_000)
    assert sum(outcomes.values()) == 10_000
    print(outcomes)


def test_every_format_is_in_the_fuzz() -> None:
    opened = {Image.open(io.BytesIO(data)).format for data in seed_files()}
    assert set(FORMATS) <= opened
