"""The exported classifier: what is written comes back, and plain open_clip code predicts the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors
import torch
from models import MakeModel, resolve_folder
from PIL import Image

from upl_ray.config.settings import Backbone
from upl_ray.errors import ConfigError
from upl_ray.storage.store import Store
from upl_ray.upl.classifier import load_classifier
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.ensemble import FILE, Ensemble, ensemble_bytes, load_ensemble
from upl_ray.upl.images import center_crop

NAMES = ("cat", "sea horse", "traffic light", "x")


def photos() -> list[Image.Image]:
    """Noise of several sizes and modes, and plain colours, which lie far apart."""
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (33, 32), (90, 31)]
    noise = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]
    colours = [Image.new("RGB", (50, 40), c) for c in ("red", "lime", "blue", "white", "black", "yellow", "cyan")]
    return [*noise, noise[0].convert("L"), noise[1].convert("RGBA"), *colours]


def export(model: Path, folder: Path, average: str = "probabilities", words: bool = False) -> Ensemble:
    """Write a classifier of three members, whose classes are what sets some of the photos apart from the others."""
    clip = ClipModel(resolve_folder(model))
    crops = np.stack([center_crop(photo, clip.spec.geometry) for photo in photos()])
    image_features = torch.from_numpy(clip.encode_crops(crops)).float()
    generator = torch.Generator().manual_seed(1)
    directions = (image_features - image_features.mean(0))[[0, 5, 7, 9]]  # [C, D]
    noise = torch.randn(3, 4, 24, generator=generator) * directions.std() / 2
    text_features = torch.nn.functional.normalize(directions + noise, dim=-1)
    ctx = torch.randn(3, 4, 32, generator=generator)
    metadata = {"classnames": list(NAMES), "logit_scale": clip.logit_scale, "ensemble": average, "note": "é"}
    zero_shot = (text_features[0].clone(), torch.nn.functional.normalize(-directions, dim=-1)) if words else None
    Store(str(folder)).write(FILE, ensemble_bytes(clip.spec, text_features, ctx, zero_shot, **metadata))
    return Ensemble(text_features, ctx, metadata, zero_shot)


@pytest.fixture
def model(make_model: MakeModel) -> Path:
    return make_model("model", preprocess={"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}, quick_gelu=True)


def test_what_is_written_comes_back(model: Path, tmp_path: Path) -> None:
    written = export(model, tmp_path / "out")
    read = load_ensemble(str(tmp_path / "out"))
    assert torch.equal(read.text_features, written.text_features)
    assert torch.equal(read.ctx, written.ctx)
    assert read.classnames == NAMES
    assert read.average == "probabilities"
    assert written.metadata.items() <= read.metadata.items()


def test_how_known_an_image_is_comes_from_the_template_and_the_words_of_the_file(model: Path, tmp_path: Path) -> None:
    written = export(model, tmp_path / "with", words=True)
    classifier = load_classifier(str(tmp_path / "with"))
    assert classifier.ensemble.zero_shot is not None
    assert all(map(torch.equal, classifier.ensemble.zero_shot, written.zero_shot or ()))
    images = photos()
    clip = classifier.clip
    crops = np.stack([center_crop(photo, clip.spec.geometry) for photo in images])
    features = torch.from_numpy(clip.encode_crops(crops)).float()
    both = (clip.logit_scale * features @ torch.cat(classifier.ensemble.zero_shot).T).softmax(dim=1)
    torch.testing.assert_close(classifier.known(images), both[:, : len(NAMES)].sum(dim=1), rtol=1e-4, atol=1e-5)
    assert classifier.known(images).max() - classifier.known(images).min() > 0.1
    export(model, tmp_path / "without")
    with pytest.raises(ValueError, match="No words competed"):
        load_classifier(str(tmp_path / "without")).known(images)


def test_the_file_says_everything_about_itself(model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "out")
    with safetensors.safe_open(tmp_path / "out" / FILE, "pt") as file:
        about = json.loads(file.metadata()["upl_ray"])
        assert {k: list(file.get_tensor(k).shape) for k in ("ctx", "text_features")} == {
            "ctx": [3, 4, 32],
            "text_features": [3, 4, 24],
        }
    spec = resolve_folder(model)
    assert about["weights_sha256"] == spec.weights_sha256
    assert about["model"] == f"local-dir:{model}"
    assert (about["preprocess"]["height"], about["preprocess"]["width"]) == (32, 32)
    assert about["preprocess"]["mean"] == [0.4, 0.5, 0.6]
    assert about["quick_gelu"] is True


def test_equal_ensembles_are_equal_bytes(model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(model, tmp_path / name)
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


def plain_open_clip(folder: Path, images: list[Image.Image]) -> tuple[list[str], torch.Tensor]:
    """The code of a user who has open_clip, torch and safetensors, and nothing of ours."""
    with safetensors.safe_open(folder / FILE, "pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()["upl_ray"])
        text_features = file.get_tensor("text_features")  # [S, C, D]
    model, _, preprocess = open_clip.create_model_and_transforms(about["model"], pretrained=about["pretrained"])
    with torch.inference_mode():
        pixels = torch.stack([preprocess(image) for image in images])
        image_features = torch.nn.functional.normalize(model.eval().encode_image(pixels), dim=-1)
        logits = about["logit_scale"] * torch.einsum("nd,scd->snc", image_features, text_features)
    p = logits.mean(0).softmax(-1) if about["ensemble"] == "logits" else logits.softmax(-1).mean(0)
    return [about["classnames"][i] for i in p.argmax(-1)], p


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_plain_open_clip_code_predicts_the_same(model: Path, tmp_path: Path, average: str) -> None:
    export(model, tmp_path / "out", average)
    classifier = load_classifier(str(tmp_path / "out"))
    images = photos()
    names, confidence = classifier.predict(images)
    theirs, p = plain_open_clip(tmp_path / "out", images)
    assert classifier.classnames == NAMES
    torch.testing.assert_close(classifier.probabilities(images), p, rtol=0, atol=2e-3)  # features in half precision
    assert confidence == pytest.approx(p.max(-1).values.tolist(), abs=2e-3)
    gap = p.topk(2).values
    sure = (gap[:, 0] - gap[:, 1] > 5e-3).tolist()
    assert sum(sure) >= len(images) // 2
    assert len(set(theirs)) > 2
    assert [n for n, s in zip(names, sure, strict=True) if s] == [n for n, s in zip(theirs, sure, strict=True) if s]


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_each_members_label_is_its_own_argmax(model: Path, tmp_path: Path, average: str) -> None:
    ensemble = export(model, tmp_path / "out", average)
    features = torch.nn.functional.normalize(torch.randn(30, 24, generator=torch.Generator().manual_seed(2)), dim=-1)
    expected = [[int((t @ f).argmax()) for t in ensemble.text_features] for f in features]
    probabilities, member_labels = ensemble.classify(features)
    assert member_labels.tolist() == expected
    assert torch.equal(probabilities, ensemble.probabilities(features))


def test_the_model_may_have_moved(model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "out")
    before = load_classifier(str(tmp_path / "out")).probabilities(photos())
    moved = model.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_classifier(str(tmp_path / "out"))
    classifier = load_classifier(str(tmp_path / "out"), Backbone(model=f"local-dir:{moved}"))
    assert torch.equal(classifier.probabilities(photos()), before)


def test_other_weights_are_refused(model: Path, make_model: MakeModel, tmp_path: Path) -> None:
    export(model, tmp_path / "out")
    other = make_model("other", seed=99, quick_gelu=True)
    with pytest.raises(ValueError, match=r"weights of .* differ"):
        load_classifier(str(tmp_path / "out"), Backbone(model=f"local-dir:{other}"))
    weights = model / "open_clip_model.safetensors"
    spec = resolve_folder(model)
    weights.write_bytes((other / weights.name).read_bytes())
    with pytest.raises(ValueError, match=r"weights of .* differ"):
        load_classifier(str(tmp_path / "out"))
    with pytest.raises(ValueError, match="not those that the driver saw"):
        ClipModel(spec)


def test_what_is_no_image_is_refused_in_words(model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "out")
    classifier = load_classifier(tmp_path / "out")
    image = Image.new("RGB", (40, 50))
    assert classifier.predict([]) == ([], [])
    assert classifier.predict(iter([image])) == classifier.predict([image])
    for wrong in ("a.jpg", tmp_path, np.zeros((4, 4, 3), np.uint8)):
        with pytest.raises(TypeError, match=r"takes PIL images, and was given a \w+; .*PIL\.Image\.open"):
            classifier.predict([image, wrong])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"takes a list of PIL images; put the image into one"):
        classifier.predict(image)  # type: ignore[arg-type]
    image.save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-30])
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    for lost in (closed, Image.open(tmp_path / "cut.png")):
        with pytest.raises(ValueError, match="truncated or damaged image"):
            classifier.predict([lost])
    with pytest.raises(ValueError, match="mixture 'foo' is unknown; use 'corpus' or 'even'"):
        classifier.predict([image], mixture="foo")  # type: ignore[arg-type]
    deep = Image.fromarray(np.full((40, 40), 1000, np.uint16))
    for mode, pixel in {"I;16B": b"\x03\x02", "I;16L": b"\x02\x03"}.items():  # as PIL opens TIFF files
        with pytest.raises(ValueError, match=f"not 8 bits a channel: mode {mode}, values from 770 to 770"):
            classifier.predict([Image.frombytes(mode, (40, 40), pixel * 1600)])
    with pytest.raises(ValueError, match="not 8 bits a channel: mode I;16, values from 1000 to 1000"):
        classifier.predict([deep])


def test_no_classifier_is_file_not_found(tmp_path: Path) -> None:
    for load in (load_ensemble, load_classifier):
        with pytest.raises(FileNotFoundError, match=r"neither classifier\.safetensors nor"):
            load(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"no classifier at '.*nothing' .*; name the storage of a finished run"):
        load_classifier(tmp_path / "nothing")


def test_the_file_itself_may_be_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(model, tmp_path / "out")
    expected = load_ensemble(str(tmp_path / "out"))
    monkeypatch.chdir(tmp_path / "out")
    for name in (FILE, str(tmp_path / "out" / FILE)):
        assert torch.equal(load_ensemble(name).text_features, expected.text_features)
