"""Mutated image files: each number always makes the same file. Imports no torch, so that a process starts fast."""

from __future__ import annotations

import random
import sys
import warnings
from typing import Any

from zoo import encode, picture

from upl_ray.upl.images import Geometry, center_crop, decode
from upl_ray.upl.rejection import Rejected

GEOMETRY = Geometry(32, 32)


def crop_or_reason(data: bytes) -> Any:
    """A crop or a reason; any other error fails the test."""
    try:
        return center_crop(decode(data), GEOMETRY)
    except Rejected as error:
        return str(error)


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
    files += [encode(small[m], "AVIF") for m in ("RGB", "RGBA")]
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
        encode(small["P"], "BLP"),
    ]
    frames = [picture("P", (40, 30), seed=i) for i in range(3)]
    return files + [
        encode(frames[0], f, save_all=True, append_images=frames[1:]) for f in ("GIF", "WEBP", "PNG", "TIFF")
    ]


def fuzz(first: int, last: int) -> dict[str, int]:
    """Decode and crop mutated files number `first` to `last`; counts crops and reasons."""
    seeds, outcomes = seed_files(), {"crop": 0, "reason": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(first, last):
            print(number, file=sys.stderr)
            found = crop_or_reason(mutated(random.Random(number), seeds))
            outcomes["reason" if isinstance(found, str) else "crop"] += 1
            if isinstance(found, str):
                assert found.isprintable()
    return outcomes
