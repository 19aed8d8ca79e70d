"""The settings: the paper's defaults, and for every field what is refused, and in which words."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from upl_ray.config.settings import UPL_STAR, Backbone, Config, Predict, Section, Train, describe_validation_error
from upl_ray.errors import ConfigError

GOOD: dict[type[Section], dict[str, Any]] = {
    Config: {
        "corpus": {"uri": "/images"},
        "classnames": ["cat", "dog"],
        "backbones": ["RN50/openai"],
        "storage_path": "/results",
    },
    Predict: {"classifier": "/run", "corpus": {"uri": "/images"}},
}
MODELS = pytest.mark.parametrize("model", GOOD)
EXPANDED = (("backbones",), ("classnames",), ("label", "negatives"))  # read more widely than their types: see the table


def config(**changes: Any) -> Config:
    return Config.model_validate({**GOOD[Config], **changes})


def refusal(model: type[Section], data: dict[Any, Any]) -> str:
    with pytest.raises(ValidationError) as error:
        model.model_validate(data)
    return describe_validation_error(error.value)


def fields(model: type[Section]) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """Path and JSON schema of every field, sections and the items of lists and mappings of sections included."""
    whole = model.model_json_schema()

    def walk(schema: dict[str, Any], path: tuple[str | int, ...]) -> Iterator[tuple[Any, dict[str, Any]]]:
        if "$ref" in schema:
            schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
        for name, field in schema.get("properties", {}).items():
            yield (*path, name), {**field, "$defs": whole.get("$defs", {})}
            yield from walk(field, (*path, name))
        for key, item in ((0, schema.get("items")), ("RN50-openai", schema.get("additionalProperties"))):
            if isinstance(item, dict):
                yield from walk(item, (*path, key))

    return walk(whole, ())


def changed(data: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """The data with a value put at a path; a backbone is known by its model."""
    if not path:
        return value
    if path[0] == 0:
        return [changed({"model": "RN50"}, path[1:], value)]
    data = data if isinstance(data, dict) else {}
    return {**data, path[0]: changed(data.get(path[0]), path[1:], value)}


def any_value(rng: random.Random, schema: str, depth: int = 2) -> Any:
    """A value of any kind; text that reads as a number or truth value is left out, as YAML reads those itself."""
    kind = rng.randrange(7 if depth else 5)
    if kind == 0:
        smallest = 0.4 if "boolean" in schema else -1  # 0 and 1 are false and true
        return rng.choice((-1, 1)) * int(10 ** rng.uniform(smallest, rng.choice((1, 30))))
    if kind == 1:
        return rng.uniform(-2, 2) * 10 ** rng.uniform(-9, 9)
    if kind == 2:
        return "".join(rng.choices("xzé# {}\x1b\n'/-", k=int(10 ** rng.uniform(0, 2.4))))
    if kind == 3:
        return None
    if kind == 4:
        return rng.random() < 0.5
    if kind == 5:
        return [any_value(rng, schema, depth - 1) for _ in range(rng.randrange(4))]
    return {"no_such_field": any_value(rng, schema, depth - 1)}


@MODELS
def test_whatever_a_fields_type_excludes_is_refused_by_the_fields_name(model: type[Section]) -> None:
    """Oracle: jsonschema over the types. The settings may refuse more, always as ValidationError."""
    rng, refused, listed = random.Random(0), 0, list(fields(model))
    assert len(listed) > 25
    for path, schema in listed:
        validator = jsonschema.Draft202012Validator(schema)
        for _ in range(0 if path in EXPANDED else 60):
            value = any_value(rng, repr({k: v for k, v in schema.items() if k != "$defs"}))
            data = changed(GOOD[model], path, value)
            if validator.is_valid(value):
                with suppress(ValidationError):
                    model.model_validate(data)
                continue
            message = refusal(model, data)
            assert ".".join(map(str, path)) in message, (path, value)
            assert all(line.isprintable() and len(line) < 1000 for line in message.splitlines()), (path, value)
            refused += 1
    assert refused > 15 * len(listed)


@MODELS
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a\0b", "holds a null character"),
        ("a\udcffb", "holds a null character or half of a pair"),
        ("s3://KEY:aB3/xY+9@bucket/x", "holds credentials"),
        ("http://169.254.169.254/x", "leads to a cloud's metadata service"),
    ],
    ids=ascii,
)
def test_every_text_refuses_secrets_and_what_no_file_can_be_called(
    model: type[Section], text: str, problem: str
) -> None:
    texts = [path for path, schema in fields(model) if "'string'" in repr({**schema, "$defs": None})]
    assert len(texts) > 6
    for path in texts:
        section = ".".join(str(p) for p in path if p != 0)
        for value in (text, [text]):
            message = refusal(model, changed(GOOD[model], path, value))
            assert f"{section} {problem}" in message
            assert text not in message
    assert f"a name in compute.request {problem}" in refusal(model, {**GOOD[model], "compute": {"request": {text: 1}}})


@MODELS
def test_unknown_fields_are_refused_in_every_section(model: type[Section]) -> None:
    sections = {path[:-1] for path, _ in fields(model)}
    assert len(sections) >= 4
    for section in sections:
        where = ".".join(map(str, (*section, "no_such_field")))
        message = refusal(model, changed(GOOD[model], (*section, "no_such_field"), 1))
        assert f"{where}: there is no such field; `--help` lists all fields." in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corpus": {}}, ["corpus.uri is empty"]),
        ({"train": {"epochs": 0}}, ["train.epochs: it should be greater than or equal to 1; it is 0."]),
        ({"train": {"lr": math.inf}}, ["train.lr", "finite"]),
        ({"train": {"epochs": True}}, ["train.epochs: it should be a number; it is True, as YAML reads yes"]),
        ({"views": {"crop_scale": [False, True]}}, ["views.crop_scale: it should be a number; it is False"]),
        ({"compute": {"request": {"GPU": True}}}, ["compute.request: it should be a number; it is True"]),
        ({"views": {"crop_scale": [0.9, 0.2]}}, ["views.crop_scale", "smallest <= largest"]),
        ({"variants": ["upl", "upl"]}, ["variants", "'upl' twice"]),
        ({"variants": ["best"]}, ["variants", "'upl*', 'upl' or 'refined'", "'best'"]),
        ({"classnames": {"a": "cat"}}, ["classnames", "it is a mapping; give a list of names"]),
        ({"storage_path": " "}, ["storage_path", "it is empty; name a folder"]),
        ({"storage_path": "run/${name}"}, ["storage_path", "variables are not filled in"]),
        *(
            ({"storage_path": f"{name}/run"}, ["storage_path", "variables are not filled in"])
            for name in ("$scratch", "$(date +%F)", "%TEMP%", "{{ env }}")
        ),
        ({"storage_path": "$HOME/run"}, ["storage_path", "variables are not filled in", "'$HOME/run'"]),
        ({"template": "a photo"}, ["template", "exactly one {}", "'a photo'"]),
        ({"template": "a photo of {{}}."}, ["template", "exactly one {}", "'a photo of {{}}.'"]),
        ({"label": {"referee": "rn"}}, ["label.referee 'rn' is none of", "RN50-openai"]),
        ({"label": {"referee": "RN50-openai"}}, ["label.referee is the target 'RN50-openai'", "another backbone"]),
        ({"target": "ViT-L-14-openai"}, ["target 'ViT-L-14-openai' is none of", "RN50-openai"]),
        ({"backbones": []}, ["backbones is empty", "at least one"]),
        ({"backbones": ""}, ["backbones: '' is no model; write for example RN50/openai"]),
        (
            {"backbones": ["local-dir:/models/クリップ"]},
            ["'local-dir:/models/クリップ' holds nothing", "give it a `name`"],
        ),
        ({"template": "\u201ca photo of a {}.\u201d"}, ["template: it stands in typographic quotes; type plain ones"]),
        ({"template": "\ufeffa photo of a {}."}, ["template: it holds a character that cannot be seen; type it again"]),
        ({"train": {"seed": 2**63}}, ["train.seed: it should be a number of 64 bits; it is 9223372036854775808."]),
        ({"backbones": ["RN50/openai", "RN50/openai"]}, ["two backbones have the name 'RN50-openai'"]),
        (
            {"backbones": [{"model": "local-dir:/clip", "pretrained": "/clip/tuned.pt"}]},
            ["pretrained '/clip/tuned.pt' stands beside 'local-dir:/clip'", "leave it out"],
        ),
        ({"backbones": [{"modell": "RN50"}]}, ["backbones.0.modell", "no such field"]),
        *(({"backbones": v}, ["backbones"]) for v in (5, None, {"model": "RN50"}, [5], [["RN50"]], [{"model": 5}])),
        ({"classnames": ["yes", True]}, ["classnames", "True is no text; put it in quotes"]),
        ({"compute": {"pools": {"RN101": {}}}}, ["compute.pools names 'RN101', none of the backbones"]),
        ({"compare": {"methods": []}}, ["compare.methods", "empty"]),
        ({"compare": {"shots": [1, 1]}}, ["compare.shots", "1 twice"]),
        ({"ablate": {"thresholds": [0.5, 1]}}, ["ablate.thresholds", "less than 1"]),
    ],
)
def test_a_wrong_value_is_refused_with_field_value_and_remedy(changes: dict[Any, Any], words: list[str]) -> None:
    message = refusal(Config, {**GOOD[Config], **changes})
    assert [w for w in words if w not in message] == []


def test_the_nightly_job_needs_a_classifier_and_images_without_labels() -> None:
    assert "classifier is empty" in refusal(Predict, {**GOOD[Predict], "classifier": ""})
    assert "corpus.uri is empty" in refusal(Predict, {**GOOD[Predict], "corpus": {}})
    labeled = {"uri": "/x", "labels": "folders"}
    assert "corpus.labels is 'folders', but this job" in refusal(Predict, {**GOOD[Predict], "corpus": labeled})


def test_a_section_made_in_python_raises_the_same_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^epochs: it should be greater than or equal to 1; it is 0\.$"):
        Train(epochs=0)


def test_a_slash_behind_a_folder_is_no_part_of_the_name() -> None:
    names = [Backbone(model=model).label for model in ("local-dir:/models/clip/", "hf-hub:org/repo/", "demo:rn")]
    assert names == ["clip", "repo", "rn"]


def test_the_defaults_are_the_papers() -> None:
    train, views = config().train, config().views
    assert (train.n_ctx, train.members, train.epochs, train.batch_size, train.lr) == (16, 16, 50, 32, 0.002)
    assert (train.momentum, train.weight_decay) == (0.9, 5e-4)
    assert (views.count, views.crop_scale, views.flip) == (50, (0.08, 1.0), 0.5)
    assert config().label.top_k == 16


def test_upl_star_is_the_papers_eight() -> None:
    star = config(backbones="upl-star")
    eight = ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14"]
    assert [(b.model, b.pretrained) for b in star.backbones] == [(m, "openai") for m in eight]
    assert (star.target_backbone.label, list(UPL_STAR)) == ("RN50-openai", eight)
    assert star.labelers("upl*") == star.labelers("refined") == star.backbones
    assert star.labelers("upl") == (star.target_backbone,) == star.backbones[:1]
    assert len(config(backbones=["upl-star", "ViT-L-14-336/openai"]).backbones) == 9


def test_numbers_are_class_names() -> None:
    assert config(classnames=[1, 2.5, "three"]).classnames == ("1", "2.5", "three")
