"""Decoding: a bad file is a reason, never another exception."""

import io
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

from upl_ray.config.settings import Label
from upl_ray.upl.images import EXTENSIONS, Geometry, center_crop, decode
from upl_ray.upl.rejection import MAX_PIXELS, MAX_SCANS, Rejected

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF")
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


def test_every_suffix_of_these_formats_is_known() -> None:
    assert set(EXTENSIONS) == {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}


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


def test_a_strip_of_20000_pixels_does_not_need_gigabytes() -> None:
    """142 bytes of PNG: resizing its short side from 1 to 224 pixels makes 224 x 4,480,000."""
    code = (
        "import sys; from upl_ray.upl.images import *\n"
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


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((4000, 3000), (500, 375)),  # an eighth: its short side has twice the pixels of a crop of 180
        ((2880, 2900), (360, 363)),
        ((2879, 2900), (720, 725)),
        ((1440, 3000), (360, 750)),
        ((720, 720), (360, 360)),
        ((719, 2000), (719, 2000)),  # half of it would be too small
    ],
)
def test_photographs_are_scaled_while_they_are_decoded_and_never_below_the_draft(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    blank = io.BytesIO()
    Image.new("RGB", size).save(blank, "JPEG")
    assert decode(blank.getvalue(), draft=360).size == expected
    assert decode(blank.getvalue()).size == size
    with pytest.raises(Rejected, match="more than"):
        decode(blank.getvalue(), size[0] * size[1] - 1, draft=360)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_no_large_jpeg_is_decoded_exactly(format: str) -> None:
    data = encoded(format, size=(300, 200))
    pixels = [np.asarray(decode(data, draft=draft).convert("RGB")) for draft in (0, 101)]
    assert np.array_equal(*pixels)
    assert (decode(data, draft=100).size == (150, 100)) == (format == "JPEG")


def test_crops_of_a_scaled_photograph_are_close_and_make_other_features() -> None:
    """A smooth picture with noise of a few levels, as photographs have at full size."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((1600, 1200), Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(coarse) + rng.normal(0, 3, (1200, 1600, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=92)
    geometry = Geometry(112, 112)
    exact, fast = (center_crop(decode(file.getvalue(), draft=d), geometry).astype(float) for d in (0, 224))
    assert np.abs(exact - fast).mean() < 1.0
    assert not np.array_equal(exact, fast)
    assert replace(geometry, draft=224).key != geometry.key == replace(geometry, draft=0).key


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
