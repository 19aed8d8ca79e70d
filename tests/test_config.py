"""The configuration: what is refused, and in which words."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import yaml

from upl_ray.backbones import _quick_gelu, resolve
from upl_ray.classnames import check_classnames
from upl_ray.command_line import load_config
from upl_ray.config import UPL_STAR, Backbone, Config, ConfigError
from upl_ray.zero_shot import fill_template

GOOD: dict[str, Any] = {
    "corpus": {"uri": "/images"},
    "classnames": ["cat", "dog"],
    "backbones": ["RN50/openai"],
    "storage_path": "/results",
}


def read(tmp_path: Path, *args: str, **changes: Any) -> Config:
    """Load GOOD with changes through a YAML file and command-line arguments."""
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return load_config([str(path), *args], default=tmp_path / "none.yaml")


def refusal(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, **changes)
    return str(error.value)


def test_the_defaults_are_the_papers(tmp_path: Path) -> None:
    train = read(tmp_path).train
    assert (train.n_ctx, train.members, train.epochs, train.batch_size, train.lr) == (16, 16, 50, 32, 0.002)
    assert (train.momentum, train.weight_decay) == (0.9, 5e-4)
    views = read(tmp_path).views
    assert (views.crop_scale, views.flip) == ((0.08, 1.0), 0.5)
    assert (read(tmp_path).label.top_k, read(tmp_path).views.count) == (16, 50)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 3}, ["epochs", "no such field", "--help"]),
        ({"train": {"epoch": 3}}, ["train", "epoch", "no such field"]),
        ({"corpus": {"url": "x"}}, ["corpus", "url", "no such field"]),
        ({"corpus": {}}, ["corpus", "uri"]),
        ({"storage_path": None}, ["storage_path", "string"]),
        ({"train": {"epochs": 0}}, ["train", "epochs", "greater than or equal to 1", "it is 0"]),
        ({"train": {"lr": "fast"}}, ["lr", "'fast'"]),
        ({"views": {"crop_scale": [0.9, 0.2]}}, ["crop_scale", "smallest <= largest"]),
        ({"train": 3}, ["train", "it is 3"]),
        ({"label": {"top_k": 2.5}}, ["label", "top_k", "integer", "2.5"]),
        ({"variants": ["upl", "upl"]}, ["variants", "once"]),
        ({"variants": ["best"]}, ["variants", "'upl*' or 'upl'", "'best'"]),
        ({"template": "a photo"}, ["template", "{}", "'a photo'"]),
        ({"template": "{} and {}"}, ["template", "exactly one {}"]),
        ({"target": "ViT-L-14-openai"}, ["target", "'ViT-L-14-openai'", "RN50-openai"]),
        ({"backbones": []}, ["backbones", "at least one"]),
        ({"backbones": ["RN50/openai", "RN50/openai"]}, ["two backbones", "'RN50-openai'", "name"]),
        ({"backbones": [{"modell": "RN50"}]}, ["modell", "no such field"]),
        ({"classnames": 5}, ["classnames", "it is 5"]),
    ],
)
def test_a_wrong_field_or_value_is_refused_with_what_and_why(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    message = refusal(tmp_path, **changes)
    assert str(tmp_path / "job.yaml") in message
    assert [w for w in words if w not in message] == []


@pytest.mark.parametrize(
    "changes",
    [{"backbones": v} for v in (5, None, {"model": "RN50"}, [5], [["RN50"]], [{"model": 5}])] + [{5: 3}],
    ids=str,
)
def test_values_of_another_type_are_refused_too(tmp_path: Path, changes: dict[Any, Any]) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    with pytest.raises(ConfigError):
        load_config([str(path)], default=path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.yaml' does not exist.*default\.yaml"):
        load_config([str(tmp_path / "nope.yaml")], default=tmp_path / "default.yaml")


@pytest.mark.parametrize("text", [b"a: [1", b"\xff\xfe\0", b"\t- x", b"- a\n- b", b"", b"just words"])
def test_a_file_that_is_no_yaml_mapping_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"is not YAML|holds no `field: value` pairs") as error:
        load_config([str(path)], default=path)
    assert "\n" not in str(error.value)


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    config = read(tmp_path, "--train.epochs", "7", "--train.n-ctx", "4", train={"epochs": 3, "members": 2})
    assert (config.train.epochs, config.train.n_ctx, config.train.members) == (7, 4, 2)
    assert read(tmp_path, "--classnames", "a", "b").classnames == ("a", "b")


def test_a_backbone_changed_on_the_command_line_is_not_called_as_before(tmp_path: Path) -> None:
    config = read(tmp_path, "--backbones.0.pretrained", "yfcc15m")
    assert config.backbones[0].label == config.target_backbone.label == "RN50-yfcc15m"


@pytest.mark.parametrize("template", ["a {} of {color}", "{}}", "{{}}", "{ {}"])
def test_other_braces_in_a_template_are_refused_or_kept(tmp_path: Path, template: str) -> None:
    try:
        config = read(tmp_path, template=template)
    except ConfigError:
        return
    assert fill_template(config.template, ("cat",)) == [template.replace("{}", "cat")]


def test_upl_star_is_the_papers_eight(tmp_path: Path) -> None:
    config = read(tmp_path, backbones="upl-star")
    eight = ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14"]
    assert [(b.model, b.pretrained) for b in config.backbones] == [(m, "openai") for m in eight]
    assert (config.target_backbone.label, list(UPL_STAR)) == ("RN50-openai", eight)
    assert all("openai" in open_clip.list_pretrained_tags_by_model(m) for m in eight)
    assert config.labelers("upl*") == config.backbones
    assert config.labelers("upl") == (config.target_backbone,) == config.backbones[:1]
    assert len(read(tmp_path, backbones=["upl-star", "ViT-L-14-336/openai"]).backbones) == 9


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ({"model": "ViT-B16", "pretrained": "openai"}, ["'ViT-B16'", "did you mean", "ViT-B-16"]),
        ({"model": "qqqqqqqq"}, ["'qqqqqqqq'", "list_models"]),
        ({"model": "RN50", "pretrained": "opnai"}, ["'opnai'", "openai", "yfcc15m", "cc12m"]),
        ({"model": "RN50"}, ["pretrained", "openai", "yfcc15m", "cc12m"]),
        ({"model": "local-dir:/nowhere"}, ["local-dir:/nowhere", "open_clip_config.json"]),
        ({"model": "demo:nothing"}, ["demo:nothing"]),
        ({"model": "ViT-B-32-quickgelu", "pretrained": "laion2b_s34b_b79k"}, ["laion2b_s34b_b79k", "tags", "openai"]),
    ],
)
def test_an_unknown_model_or_tag_is_refused_with_a_remedy(backbone: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(Backbone(**backbone))
    assert [w for w in words if w not in str(error.value)] == []


def test_weights_and_activation_must_fit() -> None:
    with_it, without = {"quick_gelu": True}, {"quick_gelu": False}
    tagged = Backbone(model="ViT-B-32", pretrained="openai")
    unfit = tagged.model_copy(update={"quick_gelu": False})
    with pytest.raises(ConfigError, match=r"'openai' of ViT-B-32 were trained with QuickGELU.*leave it out"):
        _quick_gelu(unfit, without, {"quick_gelu": True})
    assert _quick_gelu(unfit, with_it, {}) is False
    assert _quick_gelu(tagged, without, {"quick_gelu": True}) is True
    assert _quick_gelu(tagged, with_it, {}) is True
    assert _quick_gelu(tagged, without, {"url": "of a tag without the flag"}) is False
    forced = tagged.model_copy(update={"quick_gelu": True})
    assert _quick_gelu(forced, without, {"quick_gelu": False}) is True


@pytest.mark.parametrize("model", UPL_STAR)
def test_openais_weights_get_quick_gelu_by_tag_and_a_file_must_say(model: str) -> None:
    cfg, published = open_clip.get_model_config(model), open_clip.pretrained.get_pretrained_cfg(model, "openai")
    assert _quick_gelu(Backbone(model=model, pretrained="openai"), cfg, published)
    file = Backbone(model=model, pretrained="/my/file.safetensors")
    with pytest.raises(ConfigError, match=r"file.safetensors' of .* needs QuickGELU.*true for those of openai"):
        _quick_gelu(file, cfg, {})
    assert _quick_gelu(file.model_copy(update={"quick_gelu": True}), cfg, {})
    assert not _quick_gelu(file.model_copy(update={"quick_gelu": False}), cfg, {})


def test_a_torchscript_archive_is_refused_before_an_actor_dies_of_it(tmp_path: Path) -> None:
    archive = str(tmp_path / "model.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), archive)
    with pytest.raises(ConfigError, match=r"model.pt' are a TorchScript archive"):
        resolve(Backbone(model="RN50", pretrained=archive, quick_gelu=True))


def test_every_published_model_is_accepted_with_each_of_its_tags() -> None:
    """open_clip lists roberta-ViT-B-32/laion2b_s12b_b32k, whose own configuration has QuickGELU."""
    for model, tag in open_clip.list_pretrained():
        cfg, published = open_clip.get_model_config(model), open_clip.pretrained.get_pretrained_cfg(model, tag)
        _quick_gelu(Backbone(model=model, pretrained=tag), cfg, published)


def test_class_names_are_cleaned_and_kept_in_order() -> None:
    assert check_classnames(["sea_horse", " ice  cream ", "Cat"]) == ("sea horse", "ice cream", "Cat")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat", "dog", "cat"], ["'cat'", "more than once"]),
        (["sea_horse", "sea horse"], ["'sea horse'", "more than once"]),
        (["cat", "", "dog"], ["2 of 3", "empty"]),
        (["cat", " _ "], ["2 of 2", "empty"]),
        (["cat"], ["1 class names", "at least 2"]),
        ([], ["0 class names", "at least 2"]),
    ],
)
def test_useless_class_names_are_refused(names: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        check_classnames(names)
    assert [w for w in words if w not in str(error.value)] == []


def test_pools_of_single_backbones_are_named_in_the_file_and_changed_by_options(tmp_path: Path) -> None:
    pools = {"RN50-openai": {"accelerator_type": "T4", "label_selector": {"zone": "!spot"}}}
    config = read(tmp_path, "--compute.pools.RN50-openai.gpus", "0.5", compute={"pools": pools})
    assert config.compute.pools["RN50-openai"].model_dump() == {
        **pools["RN50-openai"],
        "gpus": 0.5,
        "max_actors": None,
    }
