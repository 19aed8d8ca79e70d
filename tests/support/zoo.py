"""Malformed and odd image files, made by code: name -> bytes, and what must come of each, a crop or a reason.

The names are part of it: blanks, quotes, line breaks, other alphabets, as long as a file system allows.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

SIZE = (120, 90)


@dataclass(frozen=True)
class Beast:
    """One file of the zoo."""

    data: bytes
    usable: bool | None  # None: decoders may recover or refuse, as long as they do one of the two
    same: bytes | None = None  # another file that must give the same crop


def picture(mode: str = "RGB", size: tuple[int, int] = SIZE, seed: int = 0) -> Image.Image:
    """A colourful gradient with some noise."""
    w, h = size
    y, x = np.mgrid[:h, :w]
    noise = np.random.default_rng(seed).integers(0, 40, (h, w))
    channels = [x * 200 // max(w, 1) + noise, y * 200 // max(h, 1) + noise, (x + y) * 100 // max(w + h, 1) + noise]
    rgb = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    return rgb if mode == "RGB" else rgb.convert(mode)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    """The image as a file of a format."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, *, depth: int = 8, color: int = 2, body: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG file with whatever header and compressed data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _whole() -> dict[str, Beast]:
    """Odd, and usable."""
    rgb, eight = picture(), np.linspace(0, 255, SIZE[0] * SIZE[1]).reshape(SIZE[::-1])
    palette = picture("P")
    frames = [picture(seed=i) for i in range(3)]
    files: dict[str, bytes] = {
        "one-pixel.png": encode(picture(size=(1, 1)), "PNG"),
        "two-pixels.gif": encode(picture("P", size=(2, 1)), "GIF"),
        "gray.jpg": encode(picture("L"), "JPEG"),
        "cmyk.jpg": encode(picture("CMYK"), "JPEG"),
        "cmyk.tif": encode(picture("CMYK"), "TIFF"),
        "ycbcr.tif": encode(picture("YCbCr"), "TIFF"),
        "gray.tif": encode(picture("L"), "TIFF"),
        "progressive.jpg": encode(rgb, "JPEG", progressive=True),
        "subsampled.jpg": encode(rgb, "JPEG", subsampling=2, quality=5),
        "restart-markers.jpg": encode(rgb, "JPEG", restart_marker_blocks=1),
        "palette-transparent.png": encode(palette, "PNG", transparency=3),
        "palette-alpha-list.png": encode(palette, "PNG", transparency=bytes(range(256))),
        "bilevel.png": encode(picture("1"), "PNG"),
        "bilevel-fax.tif": encode(picture("1"), "TIFF", compression="group4"),
        "gray-alpha.png": encode(picture("LA"), "PNG"),
        "alpha.png": encode(picture("RGBA"), "PNG"),
        "alpha.webp": encode(picture("RGBA"), "WEBP"),
        "lossless.webp": encode(rgb, "WEBP", lossless=True),
        "eight-of-sixteen-bit.png": encode(Image.fromarray(eight.astype(np.uint16)), "PNG"),
        "eight-of-sixteen-bit.tif": encode(Image.fromarray(eight.astype(np.uint16)), "TIFF"),
        "eight-of-thirty-two-bit.tif": encode(Image.fromarray(eight.astype(np.int32)), "TIFF"),
        "float.tif": encode(Image.fromarray(eight.astype(np.float32)), "TIFF"),
        "multi-page.tif": encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "animated.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.webp": encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "animated.png": encode(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "interlaced.gif": encode(palette, "GIF", interlace=1),
        "lzw.tif": encode(rgb, "TIFF", compression="tiff_lzw"),
        "jpeg-in.tif": encode(rgb, "TIFF", compression="jpeg"),
        "gray.bmp": encode(picture("L"), "BMP"),
        "trailing-garbage.jpg": encode(rgb, "JPEG") + b"garbage" * 99,
        "trailing-zip.png": encode(rgb, "PNG") + b"PK\x03\x04" + bytes(50),
        "wrong-extension.jpg": encode(rgb, "PNG"),
        "wrong-extension.gif": encode(rgb, "WEBP"),
        "alpha.avif": encode(picture("RGBA"), "AVIF"),
        "saved-by-windows.jfif": encode(rgb, "JPEG"),
        "upper-case.JPG": encode(rgb, "JPEG"),
        "broken-icc.jpg": encode(rgb, "JPEG", icc_profile=b"this is no profile"),
        "broken-icc.png": encode(rgb, "PNG", icc_profile=random.Random(0).randbytes(200)),
        "huge-icc.jpg": encode(rgb, "JPEG", icc_profile=bytes(2**20)),
        "corrupt-exif.jpg": encode(rgb, "JPEG", exif=b"Exif\x00\x00II*\x00" + b"\xff" * 40),
        "strip.png": encode(picture(size=(1, 300)), "PNG"),
    }
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 50_000, zip=True)
    files["much-text.png"] = encode(rgb, "PNG", pnginfo=text)
    beasts = {name: Beast(data, True) for name, data in files.items()}
    for orientation in range(1, 9):  # ignored, as open_clip ignores it
        exif = Image.Exif()
        exif[0x0112] = orientation
        beasts[f"exif-orientation-{orientation}.jpg"] = Beast(
            encode(rgb, "JPEG", exif=exif), True, same=encode(rgb, "JPEG")
        )
    return beasts


def _odd_names() -> dict[str, Beast]:
    data = encode(picture(), "JPEG")
    names = (
        *("with blanks .jpg", 'quote\'s "both".jpg', "line\nbreak.jpg", "tab\tname.jpg", "percent%20%2e.jpg"),
        *("größe-日本語-🐈.jpg", "e\u0301-decomposed.jpg", "semi;colon&and?question#hash.jpg", "back\\slash.jpg"),
        *("brackets[1]{a}(b).jpg", "=formula.jpg", "<script>alert(1)</script >.jpg".replace("/", "-"), "-dash.jpg"),
        *("x" * 240 + ".jpg", "two..dots.jpg", "star*.jpg", "escape\x1b[31m.jpg"),
    )
    return {name: Beast(data, True) for name in names}


def _broken() -> dict[str, Beast]:
    """Not usable, or not surely so."""
    rgb = picture()
    jpeg, page = encode(rgb, "JPEG"), encode(rgb, "PNG")
    deep = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE[::-1])  # of which RGB would be white
    beasts = {
        "empty.jpg": Beast(b"", False),
        "zeros.png": Beast(bytes(5000), False),
        "text.jpg": Beast(b"this is no image", False),
        "page.png": Beast(b"<!DOCTYPE html><html><body>404</body></html>", False),
        "drawing.png": Beast(b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>', False),
        "script.gif": Beast(b"#!/bin/sh\ntouch /marker\n", False),
        "postscript.jpg": Beast(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", False),
        "document.tif": Beast(b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", False),
        "elf.bmp": Beast(b"\x7fELF" + bytes(200), False),
        "zip.webp": Beast(b"PK\x03\x04" + bytes(200), False),
        "random.jpg": Beast(random.Random(1).randbytes(4000), False),
        "sixteen-bit.png": Beast(encode(Image.fromarray(deep.astype(np.uint16)), "PNG"), False),
        "sixteen-bit.tif": Beast(encode(Image.fromarray(deep.astype(np.uint16)), "TIFF"), False),
        "thirty-two-bit.tif": Beast(encode(Image.fromarray(deep.astype(np.int32)), "TIFF"), False),
        "float-to-one.tif": Beast(encode(Image.fromarray((deep / 65535).astype(np.float32)), "TIFF"), False),
        "only-magic.jpg": Beast(b"\xff\xd8\xff", False),
        "only-magic.png": Beast(b"\x89PNG\r\n\x1a\n", False),
        "only-magic.gif": Beast(b"GIF89a", False),
        "only-magic.webp": Beast(b"RIFF\x00\x00\x00\x00WEBP", False),
        "only-magic.tif": Beast(b"II*\x00", False),
        "only-magic.bmp": Beast(b"BM", False),
        "declared-huge.png": Beast(png(2**31 - 1, 2**31 - 1), False),
        "declared-large.png": Beast(png(60_000, 60_000), False),
        "declared-large.gif": Beast(b"GIF89a\xff\xff\xff\xff\x00\x00\x00" + bytes(30), False),
        "declared-large.bmp": Beast(
            b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 99999, 99999, 1, 24, *[0] * 6),
            False,
        ),
        "zero-size.png": Beast(png(0, 0), False),
        "no-data.png": Beast(png(50, 50), False),
        "bomb.png": Beast(png(50_000, 50_000, body=zlib.compress(bytes(10**7), 9)), False),
        "text-bomb.png": Beast(page[:33] + _text_bomb() + page[33:], None),
        "bad-checksum.png": Beast(page[:40] + bytes([page[40] ^ 255]) + page[41:], None),
        "missing-end.jpg": Beast(jpeg[:-2], None),
        "no-tables.jpg": Beast(jpeg[:2] + jpeg[jpeg.index(b"\xff\xc0") :], None),
        "loop.tif": Beast(b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00", False),
        "many-scans.jpg": Beast(
            encode(rgb, "JPEG", progressive=True)[:-2] + encode(rgb, "JPEG", progressive=True)[-400:-2] * 50, None
        ),
        "long-strip.png": Beast(encode(picture("L", size=(1, 20_000)), "PNG"), False),
        "wide-strip.png": Beast(encode(picture("L", size=(20_000, 1)), "PNG"), False),
    }
    for format in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"):
        data = encode(picture("P") if format == "GIF" else rgb, format)
        for share in (0.01, 0.1, 0.5, 0.9):
            beasts[f"cut-{share}.{format.lower()}"] = Beast(
                data[: max(1, int(share * len(data)))], None if share == 0.9 else False
            )
    return beasts


def _text_bomb() -> bytes:
    content = b"comment\x00\x00" + zlib.compress(bytes(200 * 2**20), 1)
    return struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))


def zoo() -> dict[str, Beast]:
    """All files by name."""
    return _whole() | _odd_names() | _broken()
