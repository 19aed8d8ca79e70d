"""The ONNX file gives the probabilities of plain open_clip code, says how it is used, and exists only if right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from models import MakeModel, resolve_folder, write_model
from PIL import Image
from s3_server import S3Server
from sklearn.datasets import load_sample_images
from torch import Tensor

import upl_ray
from upl_ray.config.settings import Backbone
from upl_ray.demo.digits import CLASSNAMES, write_digits
from upl_ray.errors import ConfigError, JobError
from upl_ray.storage.store import Store
from upl_ray.upl.backbones import resolve_backbone
from upl_ray.upl.classifier import Classifier, load_classifier
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.ensemble import FILE, Ensemble, ensemble_bytes
from upl_ray.upl.images import center_crop
from upl_ray.upl.onnx_export import export_onnx, onnx_bytes

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "export.md").read_text()
NAMES = ("temple", 'müller\'s "flower"', "sea, horse", "x")
SHARES = [0.55, 0.25, 0.15, 0.05]
RESNET = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16, "patch_size": None}
TIMM = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


@dataclass(frozen=True)
class Case:
    """A tower and how its members are averaged."""

    vision: dict[str, Any]
    average: str = "probabilities"
    shares: list[float] | None = None
    precision: str = "fp32"
    preprocess: dict[str, Any] | None = None
    words: bool = False  # compete with the classes


CASES = {
    "vit": Case({}, preprocess=PREPROCESS, words=True),
    "vit, logits": Case({"layers": 2}, "logits", SHARES),
    "resnet": Case(RESNET, shares=SHARES, precision="bf16"),
    "timm, squash": Case(
        {**TIMM, "image_size": 160}, preprocess={"resize_mode": "squash", "interpolation": "bilinear"}
    ),
}


def photos() -> list[Image.Image]:
    """Seventeen cuts of two photographs, of several sizes and modes."""
    cuts = []
    for number, pixels in enumerate(load_sample_images().images):
        for i in range(9 - number):
            left, top, size = 50 * i, 30 * i, 80 + 15 * i
            cuts.append(Image.fromarray(pixels).crop((left, top, left + size, top + size + 20 * number)))
    return [*cuts[:-1], cuts[-1].convert("L")]


def write_classifier(folder: Path | str, spec: ClipSpec, case: Case) -> None:
    """A classifier of three members whose classes lie between some of the photos."""
    clip = ClipModel(spec, "fp32")
    crops = np.stack([center_crop(photo, spec.geometry) for photo in photos()])
    features = torch.from_numpy(clip.encode_crops(crops)).float()
    directions = (features - features.mean(0))[[0, 6, 10, 16]]  # [C, D]
    noise = torch.randn(3, *directions.shape, generator=torch.Generator().manual_seed(1)) * directions.std() / 2
    text_features = torch.nn.functional.normalize(directions + noise, dim=-1)
    about = {"classnames": list(NAMES), "logit_scale": 15.0, "ensemble": case.average, "variant": "upl*"}
    about |= {"class_shares": case.shares, "variant": "refined"} if case.shares else {}
    words = torch.nn.functional.normalize(features[[1, 2, 3, 12, 13]] - features.mean(0), dim=-1)
    zero_shot = (text_features[0].clone(), words) if case.words else None
    data = ensemble_bytes(spec, text_features, torch.zeros(3, 4, 32), zero_shot, **about)
    Store(str(folder)).write(FILE, data)


@pytest.fixture(scope="module", params=CASES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Case]:
    """A folder with a model, its classifier and the ONNX file."""
    folder, case = tmp_path_factory.mktemp("onnx"), CASES[request.param]
    model = write_model(folder / "model", case.vision, preprocess=case.preprocess)
    spec = resolve_backbone(Backbone(model=f"local-dir:{model}", precision=case.precision))
    write_classifier(folder, spec, case)
    assert export_onnx(str(folder))["onnx"] == str(folder / "classifier.onnx")
    return folder, case


def plain_open_clip(folder: Path, case: Case, images: list[Image.Image]) -> torch.Tensor:
    """Probabilities by open_clip's own model and preprocessing."""
    ensemble = load_classifier(str(folder)).ensemble
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder / 'model'}")
    with torch.inference_mode():
        features = model.eval().encode_image(torch.stack([preprocess(i) for i in images]), normalize=True)
    logits = 15.0 * torch.einsum("nd,scd->snc", features, ensemble.text_features)
    logits = logits + torch.tensor(case.shares).log() if case.shares else logits
    return logits.mean(0).softmax(-1) if case.average == "logits" else logits.softmax(-1).mean(0)


def test_probabilities_and_labels_are_those_of_the_classifier(exported: tuple[Path, Case]) -> None:
    folder, case = exported
    images = photos()
    expected = plain_open_clip(folder, case, images)
    gap = expected.topk(2).values.diff().abs().squeeze(1)
    assert len(expected.argmax(1).unique()) >= 2
    spec = load_classifier(str(folder)).clip.spec
    crops = np.stack([center_crop(image, spec.geometry) for image in images])
    session = onnxruntime.InferenceSession(folder / "classifier.onnx")
    for n in (1, 3, 17):
        p, *known = session.run(None, {"crops": crops[-n:]})
        assert (p.dtype, p.shape) == (np.float32, (n, 4))
        assert [k.shape for k in known] == [(n,)] * case.words
        torch.testing.assert_close(torch.from_numpy(p), expected[-n:], rtol=0, atol=1e-4)
    classifier = Classifier(load_classifier(str(folder)).ensemble, ClipModel(spec, "fp32"))
    ours = classifier.probabilities(images)
    if case.words:
        assert 0.01 < classifier.known(images).min() < classifier.known(images).max() < 0.99
        torch.testing.assert_close(torch.from_numpy(known[0]), classifier.known(images), rtol=0, atol=2e-3)
    torch.testing.assert_close(torch.from_numpy(p), ours, rtol=0, atol=2e-3)  # features in half precision
    sure = gap > 5e-3
    assert sure.sum() > 12
    assert torch.equal(torch.from_numpy(p).argmax(1)[sure], ours.argmax(1)[sure])


def test_the_file_says_how_it_is_used_and_where_it_is_from(exported: tuple[Path, Case]) -> None:
    folder, case = exported
    session = onnxruntime.InferenceSession(folder / "classifier.onnx")
    spec = load_classifier(str(folder)).clip.spec
    size = case.vision.get("image_size", 32)
    (crops,), (probabilities, *known) = session.get_inputs(), session.get_outputs()
    assert (crops.name, crops.type, crops.shape) == ("crops", "tensor(uint8)", ["N", size, size, 3])
    assert (probabilities.name, probabilities.type, probabilities.shape) == ("probabilities", "tensor(float)", ["N", 4])
    assert [(k.name, k.type, k.shape) for k in known] == [("known", "tensor(float)", ["N"])] * case.words
    about = session.get_modelmeta().custom_metadata_map
    assert {name: json.loads(about.pop(name)) for name in ("classnames", "mean", "std", "class_shares")} == {
        "classnames": list(NAMES),
        "mean": list(spec.mean),
        "std": list(spec.std),
        "class_shares": case.shares or [],
    }
    assert about == {
        "height": str(size),
        "width": str(size),
        "resize_mode": "squash" if size == 160 else "shortest",
        "interpolation": "bilinear" if size == 160 else "bicubic",
        "fill_color": "0",
        "model": f"local-dir:{folder / 'model'}",
        "pretrained": "",
        "weights_sha256": spec.weights_sha256,
        "variant": "refined" if case.shares else "upl*",
        "ensemble": case.average,
        "upl_ray_version": upl_ray.__version__,
    }
    assert set(re.findall(r"`(\w+)`", DOCUMENT.partition("## Metadata")[2].partition(". Values")[0])) == {
        *about,
        *("classnames", "mean", "std", "class_shares"),
    }


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's images and, beside them, a classifier of the template with one of its backbones, exported."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder / "upl-demo" / "digits")
    spec = resolve_backbone(Backbone(model="demo:rn"))
    clip = ClipModel(spec)
    text_features = clip.encode_texts([f"a photo of the digit {name}." for name in CLASSNAMES])[None]
    about = {"classnames": list(CLASSNAMES), "logit_scale": clip.logit_scale, "ensemble": "probabilities"}
    Store(str(folder)).write(FILE, ensemble_bytes(spec, text_features, torch.zeros(1, 4, 64), **about))
    export_onnx(str(folder))
    return folder


def test_all_scored_digits_get_the_label_of_the_classifier(digits: Path) -> None:
    images = [Image.open(path) for path in sorted((digits / "upl-demo/digits/scored").rglob("*.png"))]
    assert len(images) == 445
    classifier = load_classifier(str(digits))
    expected = classifier.probabilities(images).numpy()
    session = onnxruntime.InferenceSession(digits / "classifier.onnx")
    crops = np.stack([center_crop(image, classifier.clip.spec.geometry) for image in images])
    (p,) = session.run(None, {"crops": crops})
    np.testing.assert_allclose(p, expected, rtol=0, atol=5e-4)
    top = np.sort(expected, axis=1)
    sure = top[:, -1] - top[:, -2] > 1e-3
    assert sure.sum() > 430
    assert (p.argmax(1) == expected.argmax(1))[sure].all()


def test_the_ten_lines_of_the_document_need_neither_torch_nor_this_package(digits: Path) -> None:
    (code,) = re.findall(r"tested by tests/upl/test_onnx_export.py -->\n```python\n(.*?)```", DOCUMENT, re.S)
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10
    used = {word for line in re.findall(r"^(?:import|from) (.*)$", code, re.M) for word in re.split(r"\W+", line)}
    assert used == {"json", "numpy", "onnxruntime", "PIL", "import", "Image"}
    paths = sorted((digits / "upl-demo/digits/scored").rglob("*0.png"))[::15]
    program = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "open_clip", "onnx", "upl_ray"]))  # to import one is an error
for path in {[str(p) for p in paths]}:
    exec({code!r}.replace("upl-demo/digits/scored/three/0063.png", path))
"""
    assert (digits / "upl-demo/digits/scored/three/0063.png").is_file()
    done = subprocess.run([sys.executable, "-c", program], cwd=digits, capture_output=True, text=True, check=True)
    labels, _ = load_classifier(str(digits)).predict([Image.open(path) for path in paths])
    assert done.stdout.split() == labels
    assert len(set(labels)) > 2


def test_no_path_of_this_machine_is_in_the_file(digits: Path) -> None:
    data = (digits / "classifier.onnx").read_bytes()
    assert b"demo:rn" in data
    assert [p for p in (str(ROOT), str(digits), "site-packages", "/upl_ray/") if p.encode() in data] == []


def test_from_object_storage_to_object_storage(digits: Path, s3: S3Server) -> None:
    bucket = s3.create_bucket()
    Store(f"s3://{bucket}/run/classifier-1").write(FILE, (digits / FILE).read_bytes())
    Store(f"s3://{bucket}/run").write_json("run.json", {"classifier": "s3://elsewhere/run/classifier-1"})
    done = export_onnx(f"s3://{bucket}/run")
    assert done["onnx"] == f"s3://{bucket}/run/classifier-1/classifier.onnx"
    data = Store(f"s3://{bucket}/run/classifier-1").read("classifier.onnx")
    assert done["bytes"] == len(data)
    assert done["largest_difference"] < 1e-4
    assert data == (digits / "classifier.onnx").read_bytes()  # equal classifiers are equal bytes


def test_a_wrong_place_is_refused(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no classifier at .*nothing.*; name the storage of a finished run"):
        export_onnx(str(tmp_path / "nothing"))
    for out in (tmp_path, tmp_path / ".onnx", tmp_path / "model.bin"):
        with pytest.raises(ConfigError, match=r"does not end in \.onnx; name one that does"):
            export_onnx(str(digits), str(out))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # an import of it fails, as where it is not installed
    with pytest.raises(ConfigError, match=r"onnxscript.*pip install 'upl-ray\[onnx\]'"):
        export_onnx(str(digits))


class Branching(torch.nn.Module):
    """A tower whose way depends on the pixels, of which no graph can be made."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.tower(pixels)
        return features if float(pixels.sum()) > 0 else -features


def test_a_tower_that_cannot_be_exported_is_refused_by_name(make_model: MakeModel) -> None:
    clip = ClipModel(resolve_folder(make_model("branching")), device="cpu")
    clip.model.visual = Branching(clip.model.visual)
    ensemble = Ensemble(torch.ones(1, 4, 24), torch.zeros(1, 4, 32), {"classnames": NAMES, "logit_scale": 1.0})
    with pytest.raises(ConfigError, match=r"image tower of branching cannot be exported to ONNX \(.+\); use the"):
        onnx_bytes(Classifier(ensemble, clip))


def test_probabilities_that_differ_leave_no_file(make_model: MakeModel, tmp_path: Path) -> None:
    spec = resolve_folder(make_model())
    write_classifier(tmp_path, spec, Case({}))
    about = {"classnames": list(NAMES), "logit_scale": float("nan"), "ensemble": "probabilities"}
    data = ensemble_bytes(spec, torch.ones(1, 4, 24), torch.zeros(1, 4, 32), **about)
    Store(str(tmp_path)).write(FILE, data)
    with pytest.raises(JobError, match=r"differ by nan from the classifier's, more than 0\.0001, and is not written"):
        export_onnx(str(tmp_path))
    assert not list(tmp_path.glob("*.onnx*"))


def test_more_than_one_file_can_hold_is_refused_before_work(small_clip: ClipModel) -> None:
    huge = torch.zeros(1).expand(16, 1_500_000, 24)  # without memory
    ensemble = Ensemble(huge, torch.zeros(16, 4, 32), {"classnames": NAMES})
    with pytest.raises(ConfigError, match=r"takes 2\.3 GB, and one ONNX file holds at most 2\.1 GB"):
        onnx_bytes(Classifier(ensemble, small_clip))
