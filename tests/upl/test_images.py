"""Evaluation crops: bit-identical to the model's own open_clip preprocessing, for every kind of image and model."""

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import deep_images
import numpy as np
import open_clip
import pytest
import torch
from models import MakeModel, resolve_folder
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.images import Geometry, center_crop, decode
from upl_ray.upl.rejection import Rejected

pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency")
PHOTOS = Path(__file__).parents[3] / "shared/data/caltech-101/101_ObjectCategories"
FORMATS = {
    **dict.fromkeys(("RGB", "L", "P", "P transparent", "RGBA", "LA", "1", "I;16"), "PNG"),
    **dict.fromkeys(("CMYK", "I", "F"), "TIFF"),
    "YCbCr": "JPEG",
}
SIZES = [(37, 53), (32, 32), (64, 40), (3, 2), (1, 1), (1, 40), (40, 1), (33, 300), (301, 30), (127, 128)]
GEOMETRIES = [
    Geometry(h, w, interpolation, resize_mode, fill)
    for (h, w), interpolation, resize_mode, fill in [
        *itertools.product([(32, 32), (24, 40), (41, 33)], ["bicubic", "bilinear"], ["shortest", "squash"], [0]),
        *itertools.product([(32, 32), (24, 40), (41, 33)], ["bicubic", "bilinear"], ["longest"], [0, 99]),
        ((32, 32), "random", "shortest", 0),
    ]
]


def picture(mode: str, width: int, height: int) -> Image.Image:
    """A colourful noisy picture that was written to and read from a file of a format that has this mode."""
    rng = np.random.default_rng([width, height, *mode.encode()])
    ramp = np.linspace(0, 200, height * width * 4).reshape(height, width, 4)
    pixels = (ramp + rng.integers(0, 56, ramp.shape)).astype(np.uint8)
    options = {}
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16))
    elif mode.startswith("P"):
        image = Image.fromarray(pixels[..., :3]).quantize(20)
        options = {"transparency": bytes(range(0, 200, 10))} if mode == "P transparent" else {}
    elif mode in ("1", "I", "F", "L"):
        image = Image.fromarray(pixels[..., 0]).convert(mode)
    else:
        image = Image.fromarray(pixels, "RGBA").convert(mode)
    file = io.BytesIO()
    image.save(file, format=FORMATS[mode], **options)
    return decode(file.getvalue())


def open_clips_crop(image: Image.Image, geometry: Geometry) -> np.ndarray | None:
    """The result of open_clip's evaluation transform before ToTensor and Normalize; None where it fails."""
    size, g = (geometry.height, geometry.width), geometry
    cfg = PreprocessCfg(size=size, interpolation=g.interpolation, resize_mode=g.resize_mode, fill_color=g.fill_color)
    try:
        for transform in image_transform_v2(cfg, is_train=False).transforms[:-2]:
            image = transform(image)
    except (ValueError, TypeError, OSError):
        return None
    return np.asarray(image)


@pytest.mark.parametrize("mode", FORMATS)
def test_crops_of_every_mode_and_shape_equal_open_clips(mode: str) -> None:
    compared = 0
    images = [picture(mode, *size) for size in SIZES]
    assert mode in ("P transparent", "YCbCr", "I") or {image.mode for image in images} == {mode}
    for image, geometry in itertools.product(images, GEOMETRIES):
        expected = open_clips_crop(image, geometry)
        if expected is None:
            with pytest.raises(Rejected):
                center_crop(image, geometry)
        else:
            np.testing.assert_array_equal(
                center_crop(image, geometry), expected, err_msg=f"{mode} {image.size} {geometry}"
            )
            compared += 1
    assert compared > len(SIZES) * len(GEOMETRIES) // 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.1, 0.9], "mode F, values from 0.1 to 0.9"),
        ([0.0, 1.03], "mode F, values from 0 to 1.03"),  # after resampling
        ([-3.0, 200.0], "mode F, values from -3 to 200"),
        ([-1.0, 1.0], "mode F, values from -1 to 1"),
        ([np.nan, 60.0], "mode F, values from nan to nan"),  # the border of a map
        ([7.0, np.inf], "mode F, values from 7 to inf"),
        ([-2000, 200], "mode I, values from -2000 to 200"),  # CT
        ([0, 256], "mode I, values from 0 to 256"),
        ([0, 255], ""),
        ([-0.24, 255.4], ""),  # after resampling, too
        ([0.0, 255.0], ""),
    ],
)
def test_images_whose_values_do_not_fit_into_bytes_are_rejected(values: list[float], words: str) -> None:
    dtype = np.float32 if isinstance(values[1], float) else np.int32
    image = Image.fromarray(np.resize(np.array(values, dtype), (40, 40)))
    if words:
        with pytest.raises(Rejected, match=f"not 8 bits a channel: {words}$"):
            center_crop(image, GEOMETRIES[0])
    else:
        np.testing.assert_array_equal(center_crop(image, GEOMETRIES[0]), open_clips_crop(image, GEOMETRIES[0]))


@pytest.mark.parametrize("write", [deep_images.png, deep_images.tiff])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colors_of_16_bits_are_rejected_where_rgb_would_be_dark(write: Callable[..., bytes], channels: int) -> None:
    if write is deep_images.tiff and channels == 2:
        channels = 4
    for highest in (255, 4095):  # 8 and 12 bits
        words = rf"not 8 bits a channel: mode \w+, 16 bits, all values below {highest + 1}$"
        with pytest.raises(Rejected, match=words):
            decode(write(deep_images.ramp(channels, highest)))
    values = deep_images.ramp(channels, 65535)
    crop = center_crop(decode(write(values)), Geometry(40, 40))
    np.testing.assert_array_equal(crop, np.repeat(values[:, :, :1] >> 8, 3, axis=2))


def test_tiffs_whose_values_pil_takes_for_others_are_rejected() -> None:
    gray, color = deep_images.ramp(1, 200), deep_images.ramp(3, 65535)
    with pytest.raises(Rejected, match="mode RGB, 16 bits in planes"):
        decode(deep_images.tiff(color, planes=True))
    with pytest.raises(Rejected, match="mode L, signed values"):
        decode(deep_images.tiff((gray.astype(int) - 100).astype(np.int8)))
    positive = (gray // 2).astype(np.int8)
    np.testing.assert_array_equal(np.asarray(decode(deep_images.tiff(positive))), positive[:, :, 0])
    for planes in (False, True):
        written = (color >> 8).astype(np.uint8)
        np.testing.assert_array_equal(np.asarray(decode(deep_images.tiff(written, planes))), written)


@pytest.mark.parametrize(("long", "fine"), [(600, True), (601, False), (2000, False)])
def test_whether_a_strip_is_rejected_does_not_depend_on_the_geometry(long: int, fine: bool) -> None:
    """2000 x 2 pixels were accepted by a backbone of 224 pixels, and rejected for it beside one of 448."""
    large = [Geometry(s, s, "bicubic", mode) for s in (224, 448) for mode in ("shortest", "longest")]
    strips = [picture("L", long, 2), picture("L", 2, long)]
    for strip, geometry in itertools.product(strips, [*GEOMETRIES, *large]):
        if fine:
            expected = open_clips_crop(strip, geometry)
            assert expected is not None or geometry.resize_mode == "longest"  # it would have a side of 0 pixels
            crop = center_crop(strip, geometry)
            assert np.array_equal(crop, crop if expected is None else expected)
        else:
            with pytest.raises(Rejected, match="aspect ratio"):
                center_crop(strip, geometry)


def test_the_crop_leaves_the_image_unchanged() -> None:
    image = picture("RGBA", 37, 53)
    before = image.tobytes()
    center_crop(image, GEOMETRIES[0])
    assert (image.mode, image.size, image.tobytes()) == ("RGBA", (37, 53), before)


@pytest.mark.parametrize("mode", FORMATS)
def test_normalised_pixels_equal_the_whole_transform(small_clip: ClipModel, mode: str) -> None:
    spec = small_clip.spec
    cfg = PreprocessCfg(size=32, mean=spec.mean, std=spec.std)
    image = picture(mode, 45, 61)
    ours = small_clip.normalize_pixels(np.stack([center_crop(image, spec.geometry)]))[0]
    assert torch.equal(ours, image_transform_v2(cfg, is_train=False)(image))


@pytest.mark.parametrize(
    ("image_size", "preprocess"),
    [
        (32, {}),
        (32, {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}),
        (32, {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}),
        (48, {"resize_mode": "longest", "fill_color": 120}),
        ([32, 48], {}),
        ([32, 48], {"resize_mode": "squash", "interpolation": "bilinear"}),
    ],
)
def test_a_loaded_model_preprocesses_as_open_clip_does(
    make_model: MakeModel, image_size: int | list[int], preprocess: dict[str, object]
) -> None:
    folder = make_model(vision={"image_size": image_size}, preprocess=preprocess)
    clip = ClipModel(resolve_folder(folder))
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    pictures = [picture(mode, *size) for mode, size in itertools.product(("RGB", "L", "RGBA"), SIZES[:4])]
    crops = np.stack([center_crop(p, clip.spec.geometry) for p in pictures])
    pixels = torch.stack([transform(p) for p in pictures])
    assert torch.equal(clip.normalize_pixels(crops), pixels)
    with torch.inference_mode():
        features = torch.nn.functional.normalize(model.eval().encode_image(pixels), dim=-1)
    np.testing.assert_allclose(clip.encode_crops(crops), features.half().numpy(), rtol=1e-3, atol=1e-4)  # rounding


def test_the_towers_input_size_rules_over_the_preprocessings_as_in_open_clip(make_model: MakeModel) -> None:
    folder = make_model(vision={"image_size": 32})
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["size"] = 48
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    geometry = resolve_folder(folder).geometry
    assert (3, geometry.height, geometry.width) == tuple(transform(picture("RGB", 60, 60)).shape)


def photographs() -> list[Path]:
    """One photograph of each class; the seventeenth is grey in ten of them."""
    return [sorted(folder.glob("*.jpg"))[16] for folder in sorted(PHOTOS.iterdir())] if PHOTOS.is_dir() else []


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photographs: {PHOTOS} is absent")
@pytest.mark.parametrize("pixels", [224, 288, 336])
def test_crops_of_photographs_equal_open_clips(small_clip: ClipModel, pixels: int) -> None:
    geometry = Geometry(pixels, pixels)
    whole = image_transform_v2(PreprocessCfg(size=pixels), is_train=False)
    modes = set()
    for i, path in enumerate(photographs()):
        image = decode(path.read_bytes())
        modes.add(image.mode)
        crop = center_crop(image, geometry)
        np.testing.assert_array_equal(crop, open_clips_crop(Image.open(path), geometry), err_msg=str(path))
        if i % 10 == 0:
            assert torch.equal(small_clip.normalize_pixels(np.stack([crop]))[0], whole(Image.open(path)))
    assert modes == {"L", "RGB"}
