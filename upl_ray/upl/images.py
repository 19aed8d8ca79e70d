"""Bytes -> uint8 crops, exactly as the model's own open_clip preprocessing makes them, or a reason for refusal.

Only PIL and NumPy, no torch, so that decoding workers start fast.

Shapes: H, W crop height and width, V views.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from upl_ray.upl import rejection
from upl_ray.upl.rejection import MAX_ASPECT, MAX_PIXELS, MAX_SCANS, Rejected

Crop = npt.NDArray[np.uint8]

# All that PIL registers for these formats.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".apng", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".avif", ".avifs"),
)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # not PIL's others, some of which run programs
BYTES_OF_PIXEL = 16  # of the widest format, four floats; a file with more bytes for each of its pixels is no image
CROP_RATIO = (3 / 4, 4 / 3)  # aspect ratios of a random resized crop: torchvision's default, which CoOp uses
OVERSHOOT = 2.5  # of floats that were resized bicubically, beyond 0 and 255
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # modes of more than 8 bits a channel
COLORED = {"LA": 1, "RGB": 3, "RGBX": 3, "RGBA": 3, "RGBa": 3}  # modes of 8 bits a channel -> channels before alpha
BITS_OF_CHANNEL, SAMPLE_FORMAT = 258, 339  # tags of TIFF; the latter is 2 for signed numbers
MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)  # of JPEG, beside those within a scan
# PIL's decoders raise these on files that are damaged, truncated or no images at all.
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    ArithmeticError,
    LookupError,
    EOFError,
    TypeError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Geometry:
    """How a model wants its pixels: the part of open_clip's `PreprocessCfg` that decides about uint8 crops."""

    height: int
    width: int
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0
    max_pixels: int = MAX_PIXELS
    draft: int = 0  # pixels that the sides of a JPEG keep at least when it is scaled while it is decoded; 0: never

    @property
    def key(self) -> str:
        """Name of the pixel column; models that share it share the decoded crop."""
        mode = "" if (self.resize_mode, self.interpolation) == ("shortest", "bicubic") else f"_{self.resize_mode}"
        mode += str(self.fill_color) if self.resize_mode == "longest" else ""
        mode += "_bilinear" if self.interpolation == "bilinear" else ""
        most = f"_{self.max_pixels}" if self.max_pixels != MAX_PIXELS else ""
        draft = f"_draft{self.draft}" if self.draft else ""
        return f"pixels_{self.height}x{self.width}{mode}{most}{draft}"

    @property
    def max_bytes(self) -> int:
        """Size of the largest file that is read at all."""
        return BYTES_OF_PIXEL * self.max_pixels + 2**20

    @property
    def resample(self) -> Image.Resampling:
        """PIL's filter; open_clip evaluates `random` as bicubic."""
        return Image.Resampling.BILINEAR if self.interpolation == "bilinear" else Image.Resampling.BICUBIC


def decode(data: bytes, max_pixels: int = MAX_PIXELS, draft: int = 0) -> Image.Image:
    """Open and fully load an image in its own mode (first frame of an animation).

    Args:
        data: the file.
        max_pixels: larger images are refused, whatever they are scaled to.
        draft: a JPEG is decoded at the smallest of 1, 1/2, 1/4 and 1/8 of its size whose sides keep at least this
            number of pixels (libjpeg scales while it decodes); 0: at its own size.

    Raises:
        Rejected: empty, not an image, truncated, damaged, or with more than `max_pixels` pixels.
    """
    if not data:
        raise Rejected(rejection.EMPTY)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Rejected(rejection.too_many_pixels(max_pixels)) from None
    except DECODE_ERRORS as error:
        raise Rejected(rejection.not_opened(error)) from None
    if image.width * image.height > max_pixels:
        raise Rejected(rejection.too_many_pixels(max_pixels))
    if image.format in ("JPEG", "MPO") and _scans(data) > MAX_SCANS:
        raise Rejected(rejection.too_many_scans())
    if draft:
        image.draft(None, (draft, draft))
    return load(image)


def load(image: Image.Image) -> Image.Image:
    """The image with its pixels in memory.

    Raises:
        Rejected: it is truncated, damaged or closed; or colored with 16 bits a channel, of which no more than 12 are
            used, so that PIL would make it black.
    """
    wide, signed = _layout(image)
    try:
        image.load()
    except DECODE_ERRORS as error:
        raise Rejected(rejection.not_decoded(error)) from None
    if signed and np.asarray(image).max() > 127:  # negative ones
        raise Rejected(rejection.scrambled(image.mode, "signed values"))
    if wide:  # PIL keeps the upper 8 bits of each channel
        highest = int(np.asarray(image)[..., : COLORED[image.mode]].max())
        if highest < 16:
            raise Rejected(rejection.too_dark(image.mode, 256 * (highest + 1)))
    return image


def _layout(image: Image.Image) -> tuple[bool, bool]:
    """Whether a file has 16 bits a channel of a color, and whether its bytes are signed; both False once it is loaded.

    Raises:
        Rejected: PIL would scramble its values.
    """
    raw = [str(tile[3]) for tile in getattr(image, "tile", ())]  # empty behind loading
    wide = any(";16" in kind for kind in raw)
    tags = getattr(image, "tag_v2", {}) if raw and image.mode in ("L", *COLORED) else {}
    if 16 in tags.get(BITS_OF_CHANNEL, ()) and not wide:
        raise Rejected(rejection.scrambled(image.mode, "16 bits in planes"))
    return wide and image.mode in COLORED, 2 in tags.get(SAMPLE_FORMAT, ())


def _scans(data: bytes) -> int:
    """Number of scans of a JPEG file's first image; bytes in comments and profiles do not count."""
    scans, at = 0, 2
    while (found := MARKER.search(data, at)) and found[1] != b"\xd9":  # the end of the image
        at = found.end()
        scans += found[1] == b"\xda"
        if found[1] not in (b"\x01", b"\xd8"):  # all others hold their length
            at += int.from_bytes(data[at : at + 2], "big")
    return scans


def center_crop(image: Image.Image, geometry: Geometry) -> Crop:
    """The evaluation crop of one image, [H, W, 3], equal to open_clip's transform before normalisation.

    The image is resized in its own mode and converted to RGB afterwards, as open_clip does. Rejection does not depend
    on the geometry, so that it does not depend on which backbones share a pass.

    Raises:
        Rejected: its sides differ too much, its values do not fit into 8 bits, so that PIL would make it white or
            black, or PIL cannot resize or convert this mode.
    """
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise Rejected(rejection.too_long(image.width, image.height))
    _check_depth(image)
    size = (geometry.height, geometry.width)
    ratios = (image.height / geometry.height, image.width / geometry.width)
    try:
        if geometry.resize_mode == "squash":
            image = image.resize(size[::-1], geometry.resample)
        elif geometry.resize_mode == "longest":
            image = _fit_crop_or_pad(_resize_ratio(image, max(ratios), geometry.resample), geometry)
        elif geometry.height == geometry.width:
            image = _crop(_resize_short_side(image, geometry.height, geometry.resample), size)
        else:  # open_clip resizes non-square targets bicubically, whatever the configuration says
            image = _crop(_resize_ratio(image, min(ratios), Image.Resampling.BICUBIC), size)
        return np.asarray(image.convert("RGB"))
    except DECODE_ERRORS as error:
        raise Rejected(rejection.not_converted(image.mode, error)) from None


def _check_depth(image: Image.Image) -> None:
    if image.mode in DEEP:
        values = np.asarray(image.convert("I") if image.mode.startswith("I;") else image)
        lowest, highest = float(values.min()), float(values.max())  # NaN if one is
        margin = OVERSHOOT if image.mode == "F" else 0
        in_bytes = lowest >= -margin and highest <= 255 + margin
        if not in_bytes or (image.mode == "F" and highest < 2):  # up to 1, or a little more after resampling
            raise Rejected(rejection.too_deep(image.mode, lowest, highest))


def _resize_short_side(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """The image with `size` pixels at its short side (torchvision's Resize)."""
    w, h = image.size
    short, long = min(w, h), max(w, h)
    scaled = int(size * long / short)  # torchvision truncates
    return image.resize((size, scaled) if w <= h else (scaled, size), resample)


def _resize_ratio(image: Image.Image, ratio: float, resample: Image.Resampling) -> Image.Image:
    """The image with its sides divided by `ratio` (open_clip's ResizeKeepRatio)."""
    w, h = image.size
    return image.resize((max(1, round(w / ratio)), max(1, round(h / ratio))), resample)  # open_clip fails at 0


def _crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The centre of the image, `size` = (height, width) (torchvision's CenterCrop)."""
    w, h = image.size
    top, left = round((h - size[0]) / 2.0), round((w - size[1]) / 2.0)
    return image.crop((left, top, left + size[1], top + size[0]))


def _fit_crop_or_pad(image: Image.Image, geometry: Geometry) -> Image.Image:
    """The centre of the image, with a border where it is smaller than the crop (open_clip's CenterCropOrPad)."""
    (w, h), height, width = image.size, geometry.height, geometry.width
    dx, dy = max(width - w, 0), max(height - h, 0)
    if dx or dy:
        border = (dx // 2, dy // 2, (dx + 1) // 2, (dy + 1) // 2)
        bands = len(image.getbands())
        fill = geometry.fill_color if bands == 1 else (geometry.fill_color,) * bands
        image = ImageOps.expand(image, border, fill)
    return _crop(image, (height, width))


def random_views(
    image: Image.Image,
    geometry: Geometry,
    image_id: str,
    n_views: int,
    seed: int,
    scale: tuple[float, float],
    flip: float,
) -> Crop:
    """Augmented views of one image, [V, H, W, 3]: random resized crop, then a horizontal flip (paper, section 4.1).

    The views are a function of (seed, image_id) alone, on every worker.

    Args:
        image: a decoded image.
        geometry: size and interpolation of a view.
        image_id: the image's id in the corpus.
        n_views: V.
        seed: of the view bank.
        scale: smallest and largest share of the image's area that a crop covers [0-1].
        flip: probability of a flip [0-1].
    """
    words = np.frombuffer(hashlib.sha256(image_id.encode()).digest(), dtype=np.uint32)
    rng = np.random.default_rng([seed, *words.tolist()])
    views = np.empty((n_views, geometry.height, geometry.width, 3), np.uint8)
    for v in range(n_views):
        box = random_crop_box(image.size, rng, scale)
        view = image.crop(box).resize((geometry.width, geometry.height), geometry.resample).convert("RGB")
        views[v] = np.asarray(ImageOps.mirror(view) if rng.random() < flip else view)
    return views


def random_crop_box(
    size: tuple[int, int], rng: np.random.Generator, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random resized crop of an image of `size` = (width, height).

    Area uniform in `scale`, aspect ratio log-uniform in 3/4 to 4/3; after ten boxes that do not fit, the largest
    central box whose ratio is allowed (torchvision, RandomResizedCrop).
    """
    w, h = size
    for _ in range(10):
        area = w * h * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        cw, ch = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < cw <= w and 0 < ch <= h:
            left, top = int(rng.integers(0, w - cw + 1)), int(rng.integers(0, h - ch + 1))
            return left, top, left + cw, top + ch
    cw, ch = w, h
    if w / h < CROP_RATIO[0]:
        ch = round(w / CROP_RATIO[0])
    elif w / h > CROP_RATIO[1]:
        cw = round(h * CROP_RATIO[1])
    left, top = (w - cw) // 2, (h - ch) // 2
    return left, top, left + cw, top + ch
