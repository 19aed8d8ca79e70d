"""Decoding: a bad file is a reason, never another exception."""

import io
import random
import resource
import struct
import subprocess
import sys
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from upl_ray.config import Label
from upl_ray.images import EXTENSIONS, MAX_PIXELS, MAX_SCANS, Geometry, Rejected, center_crop, decode

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")
GEOMETRY = Geometry(32, 32)


def encoded(format: str, size: tuple[int, int] = (53, 37), mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format=format, **options)
    return file.getvalue()


def reason(data: bytes) -> str:
    with pytest.raises(Rejected) as error:
        decode(data)
    return str(error.value)


@pytest.mark.parametrize("format", FORMATS)
def test_every_listed_format_is_read(format: str) -> None:
    image = decode(encoded(format))
    assert image.size == (53, 37)
    assert image.format == format
    assert any(ext in EXTENSIONS for ext, name in Image.registered_extensions().items() if name == format)


def test_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (9, 7), color) for color in ("red", "lime", "blue")]
    file = io.BytesIO()
    frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:])
    assert decode(file.getvalue()).convert("RGB").getpixel((4, 3)) == (255, 0, 0)


def test_an_empty_file_is_refused() -> None:
    assert reason(b"") == "empty file"


@pytest.mark.parametrize("data", [b"<html>404 Not Found</html>", b"\0" * 1000, "Katze".encode("utf-16"), b"P"])
def test_a_file_that_is_no_image_is_refused(data: bytes) -> None:
    assert reason(data) == "not an image: no decoder recognises it"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.6, 0.95])
def test_a_truncated_file_is_refused(format: str, share: float) -> None:
    data = encoded(format, size=(200, 150))
    text = reason(data[: int(share * len(data))])
    assert text.startswith(("truncated or damaged image: ", "damaged image: ", "not an image: "))
    if format in ("JPEG", "PNG"):
        assert text.startswith("truncated or damaged image: ")
        assert "truncated" in text.removeprefix("truncated or damaged image: ")


def test_reasons_are_one_short_line_and_the_same_each_time() -> None:
    data = encoded("JPEG", size=(200, 150))
    for bad in (b"", b"text", data[:500], data[:2000], encoded("PNG")[:60]):
        assert reason(bad) == reason(bad)
        assert len(reason(bad).splitlines()) == 1
        assert len(reason(bad)) < 300


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("PNG", size=(50, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2499)  # PIL warns above it and refuses twice as many
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        assert decode(data).size == (50, 50)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1249)
        assert "pixels" in reason(data)


def test_pils_own_limit_is_the_one_in_the_reason() -> None:
    def png_of_width(width: int) -> bytes:
        chunk = b"IHDR" + struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0)
        return (
            b"\x89PNG\r\n\x1a\n"
            + struct.pack(">I", 13)
            + chunk
            + struct.pack(">I", zlib.crc32(chunk))
            + bytes(4)
            + b"IDAT"
        )

    assert reason(png_of_width(178956971)) == "more than 178956970 pixels"
    assert "pixels" not in reason(png_of_width(100))


def corrupted(data: bytes, rng: random.Random) -> bytes:
    """Some bytes overwritten, inserted, deleted or cut off, often within the header."""
    bad = bytearray(data)
    for _ in range(rng.choice([1, 2, 4, 16])):
        at = rng.randrange(min(len(bad), rng.choice([64, len(bad)])))
        kind = rng.random()
        if kind < 0.6:
            bad[at] = rng.choice([0, 255, rng.randrange(256)])
        elif kind < 0.7:
            bad = bad[: rng.randrange(1, len(bad) + 1)]
        elif kind < 0.85:
            bad[at : at + rng.randrange(1, 9)] = b"\xff"
        else:
            bad[at:at] = rng.randbytes(8)
    return bytes(bad)


def judge(data: bytes) -> str | None:
    """None if the image is usable, else the reason; any other exception fails the test that calls this."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = decode(data)
            if max(image.size) < 5000:
                assert center_crop(image, GEOMETRY).shape == (32, 32, 3)
    except Rejected as error:
        return str(error)
    return None


@pytest.mark.parametrize("format", FORMATS)
def test_corrupted_files_give_reasons_and_no_other_exception(format: str) -> None:
    rng = random.Random(format)
    modes = {"JPEG": ("RGB", "L", "CMYK"), "GIF": ("P", "L"), "BMP": ("RGB", "P", "1")}
    intact = [encoded(format, mode=mode) for mode in modes.get(format, ("RGB", "RGBA", "L"))]
    if format == "TIFF":
        intact += [encoded(format, compression=c) for c in ("tiff_lzw", "jpeg", "packbits")]
    outcomes = [judge(corrupted(rng.choice(intact), rng)) for _ in range(300)]
    assert sum(o is not None for o in outcomes) > 10
    assert all(o for o in outcomes if o is not None)


def test_damaged_files_of_other_formats_under_an_images_name_give_reasons() -> None:
    """The name says .jpg, the bytes are DDS, AVIF or BLP: PIL opens them, and fails with RuntimeError."""
    rng = random.Random(1)
    intact = [encoded("DDS"), encoded("AVIF", mode="RGB"), encoded("BLP", mode="P")]
    for _ in range(600):
        judge(corrupted(rng.choice(intact), rng))


def test_a_strip_of_20000_pixels_does_not_need_gigabytes() -> None:
    """142 bytes of PNG: resizing its short side from 1 to 224 pixels makes 224 x 4,480,000."""
    code = (
        "import sys; from upl_ray.images import *\n"
        "try: print(center_crop(decode(sys.stdin.buffer.read()), Geometry(224, 224)).shape)\n"
        "except Rejected as error: print(error)"
    )
    limit = 2 << 30
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=encoded("PNG", size=(20000, 1)),
        capture_output=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    answer = done.stdout.decode().strip()
    assert answer == "its aspect ratio is too long: 20000 x 1 pixels"


@pytest.mark.parametrize("format", FORMATS)
def test_a_lower_limit_of_pixels_refuses_before_decoding(format: str) -> None:
    data = encoded(format, size=(50, 40))
    assert decode(data, 2000).size == (50, 40)
    with pytest.raises(Rejected, match=r"^more than 1999 pixels$"):
        decode(data, 1999)
    header = data[: len(data) // 2]  # the rest is not looked at
    if format in ("JPEG", "PNG", "GIF", "BMP"):
        with pytest.raises(Rejected, match=r"^more than 1999 pixels$"):
            decode(header, 1999)


def test_a_lower_limit_makes_other_features() -> None:
    assert GEOMETRY.key == replace(GEOMETRY, max_pixels=MAX_PIXELS).key != replace(GEOMETRY, max_pixels=10**6).key
    assert Label().max_pixels == MAX_PIXELS


def with_scans(n: int) -> bytes:
    """A progressive JPEG file whose last scan is repeated until there are `n`."""
    whole = encoded("JPEG", size=(200, 150), progressive=True)
    starts = [i for i in range(len(whole)) if whole[i : i + 2] == b"\xff\xda"]
    return whole[:-2] + whole[starts[-1] : -2] * (n - len(starts)) + whole[-2:]


def test_a_jpeg_file_of_very_many_scans_is_refused() -> None:
    """PIL takes 40 times as long for 200 scans as for ten."""
    with_profile = encoded("JPEG", progressive=True, icc_profile=b"\xff\xda\x00\x02" * 500) + b"\xff\xda\x00\x02" * 500
    for data in (with_scans(MAX_SCANS), encoded("JPEG", restart_marker_blocks=1), with_profile):
        decode(data)
    assert reason(with_scans(MAX_SCANS + 1)) == "more than 100 scans"
