"""PNG and TIFF files of 16 bits a channel, and of signed bytes, which PIL reads but does not write."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]  # [height, width, channels]
PNG_COLORS = {2: 4, 3: 2, 4: 6}  # channels -> type of color


def png(values: Values) -> bytes:
    """A PNG of 16 bits a channel: gray or RGB, and perhaps alpha."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLORS[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values: Values, planes: bool = False) -> bytes:
    """A TIFF without compression of the values' own type; `planes`: one channel behind the other."""
    height, width, channels = values.shape
    pixels = (values.transpose(2, 0, 1) if planes else values).tobytes()
    strips = channels if planes else 1
    length = len(pixels) // strips
    bits, signed = 8 * values.itemsize, values.dtype.kind == "i"
    tags: list[tuple[int, str, list[int]]] = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [bits] * channels),
        (259, "H", [1]),
        (262, "H", [2 if channels > 2 else 1]),
        (273, "I", [8 + i * length for i in range(strips)]),
        (277, "H", [channels]),
        (278, "I", [height]),
        (279, "I", [length] * strips),
        (284, "H", [2 if planes else 1]),
        (339, "H", [2 if signed else 1] * channels),
    ]
    if channels == 4:
        tags.insert(-1, (338, "H", [2]))
    begin = 8 + len(pixels)
    beyond = begin + 2 + 12 * len(tags) + 4
    directory, tail = struct.pack("<H", len(tags)), b""
    for tag, kind, numbers in tags:
        packed = struct.pack(f"<{len(numbers)}{kind}", *numbers)
        if len(packed) > 4:
            packed, tail = struct.pack("<I", beyond + len(tail)), tail + packed
        directory += struct.pack("<HHI", tag, 3 if kind == "H" else 4, len(numbers)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", begin) + pixels + directory + struct.pack("<I", 0) + tail


def ramp(channels: int, highest: int) -> Values:
    """A picture whose values rise to the highest, with an opaque alpha channel if it has 2 or 4."""
    gray = np.linspace(0, highest, 40 * 40).round().astype(np.uint16).reshape(40, 40, 1)
    values = np.repeat(gray, channels, axis=2)
    if channels in (2, 4):
        values[:, :, -1] = 65535
    return values
