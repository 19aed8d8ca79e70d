"""Every field of every configuration, with values that it cannot have: each is refused with its name, in words."""

from __future__ import annotations

import math
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from upl_ray.command_line import load_config, load_predict
from upl_ray.config import Config, ConfigError
from upl_ray.predict_config import Predict
from upl_ray.section import Section
from upl_ray.study_config import once, some

GOOD: dict[type[Section], dict[str, Any]] = {
    Config: {
        "corpus": {"uri": "/images"},
        "classnames": ["cat", "dog"],
        "backbones": ["RN50/openai"],
        "storage_path": "/results",
    },
    Predict: {"classifier": "/run", "corpus": {"uri": "/images"}},
}
LOAD = {Config: load_config, Predict: load_predict}
HOSTILE_TEXT = ("\x1b[31m", "a\nb", "a\x00b", "ü" * 300, "{}{}", "../..", "'; rm -rf /", "-1", "", " ", "null")


def fields(model: type[Section], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every field, nested ones by their path."""
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from fields(annotation, (*prefix, name))
        yield (*prefix, name), info


def wrong_values(info: FieldInfo) -> Iterator[Any]:
    """Values of a wrong kind or beyond the bounds."""
    accepted = repr(info.annotation)
    yield {"no": {"such": "thing"}} if "dict" not in accepted else [[1]]
    yield [[{"nested": [None]}]]
    if any(isinstance(m, AfterValidator) and m.func is once for m in info.metadata):
        yield [*info.default, info.default[0]]
    if any(isinstance(m, AfterValidator) and m.func is some for m in info.metadata):
        yield []
    if isinstance(info.default, tuple):  # a list, whose elements have bounds of their own
        about = [m for element in typing.get_args(info.annotation) for m in getattr(element, "__metadata__", ())]
        yield from ([*info.default[:1], value] for m in about for value in beyond(m))
    yield from beyond(info)
    if info.annotation is int:
        yield from (1.5, "1.5", "0x10", None)
    if info.annotation is bool:
        yield from ("perhaps", 2, None)
    if "Literal" in accepted and "str]" not in accepted:
        yield from HOSTILE_TEXT[:4]
    if info.annotation is str:
        yield from (None, 3, 1.5, True, ["a"])


def beyond(info: FieldInfo) -> Iterator[Any]:
    """Values beyond the bounds, and what is no number."""
    for bound in info.metadata:
        if isinstance(bound, Ge):
            yield typing.cast(Any, bound.ge) - 1
        if isinstance(bound, Gt):
            yield bound.gt
        if isinstance(bound, Le):
            yield typing.cast(Any, bound.le) + 1
        if isinstance(bound, Lt):
            yield bound.lt
        if isinstance(bound, MinLen):
            yield []
    if any(isinstance(b, Ge | Gt | Le | Lt) for b in info.metadata):
        yield from (math.nan, math.inf, -math.inf, -(10**30), "many", "1e", [1], "")


def cases(model: type[Section]) -> list[Any]:
    return [
        pytest.param(model, path, value, id=f"{model.__name__}.{'.'.join(path)}-{i}")
        for path, info in fields(model)
        for i, value in enumerate(wrong_values(info))
    ]


def nested(data: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The data with a value put at a path."""
    head, *rest = path
    if not rest:
        return {**data, head: value}
    inner = data.get(head)
    return {**data, head: nested(inner if isinstance(inner, dict) else {}, tuple(rest), value)}


def refusal(model: type[Section], data: Any, tmp_path: Path) -> str:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.dump(data))
    with pytest.raises(ConfigError) as error:
        LOAD[model]([str(file)], default=tmp_path / "none.yaml")
    return str(error.value)


@pytest.mark.parametrize(("model", "path", "value"), [*cases(Config), *cases(Predict)])
def test_every_wrong_value_is_refused_with_the_fields_name(
    model: type[Section], path: tuple[str, ...], value: Any, tmp_path: Path
) -> None:
    message = refusal(model, nested(GOOD[model], path, value), tmp_path)
    assert path[-1] in message
    assert "Traceback" not in message
    for line in message.splitlines():
        assert line.isprintable()
        assert len(line) < 1000


def test_there_are_many_cases() -> None:
    assert len(cases(Config)) > 300
    assert {c.values[1][0] for c in cases(Config)} == set(Config.model_fields)


@pytest.mark.parametrize("model", [Config, Predict])
def test_unknown_fields_are_refused_in_every_section(model: type[Section], tmp_path: Path) -> None:
    sections = {path[:-1] for path, _ in fields(model)}
    assert len(sections) >= 4
    for section in sections:
        message = refusal(model, nested(GOOD[model], (*section, "no_such_field"), 1), tmp_path)
        assert "no_such_field" in message
        assert "no such field" in message


@pytest.mark.parametrize("model", [Config, Predict])
def test_an_empty_section_is_refused_by_name(model: type[Section], tmp_path: Path) -> None:
    """`train:` with nothing behind it is None in YAML."""
    for section in {path[0] for path, _ in fields(model) if len(path) > 1}:
        assert section in refusal(model, {**GOOD[model], section: None}, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "corpus: [unclosed",
        "a: b: c",
        "\tcorpus: x",
        "- a\n- b",
        "just text",
        "5",
        "",
        "null",
        "1: 2",
        "corpus: !!python/object/apply:os.system ['touch marker']",
        "!!python/object/new:type {}",
        "? {a: b}\n: c",
        "a: &a [x]\nb: *c",
        "corpus: !!binary '!!!'",
        "\x00",
        "corpus: \x07",
        "a: " + "[" * 1500,
        "a: " + "{b: " * 1500,
        "- " * 1500,
        "2024-13-45: x",
        "!!int foo",
        "x: =",
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_mapping_of_fields_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(text.encode())
    with pytest.raises(ConfigError) as error:
        load_config([str(file)], default=tmp_path / "none.yaml")
    assert "job.yaml" in str(error.value)
    assert all(line.isprintable() for line in str(error.value).splitlines())
    assert not (Path.cwd() / "marker").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("storage_path: 2024-13-45", ["storage_path", "'2024-13-45' is read as `timestamp`", "quotes"]),
        ("storage_path: 2024-01-01", ["storage_path", "'2024-01-01'", "quotes"]),
        ("train: {epochs: 0x_}", ["train.epochs", "'0x_' is read as `int`, and is none"]),
        ("train: {epochs: !!int foo}", ["train.epochs", "'foo'", "int"]),
        ("train: {epochs: !!int ''}", ["train.epochs", "''", "int"]),
        ("train: {epochs: " + "9" * 5000 + "}", ["train.epochs", "'9999", "int"]),
        ("train: {lr: !!float foo}", ["train.lr", "'foo'", "float"]),
        ("train: {lr: 1" + ":1" * 200 + ".0}", ["train.lr", "float"]),
        ("repair: !!bool maybe", ["repair", "'maybe'", "bool"]),
        ("storage_path: !!timestamp foo", ["storage_path", "'foo'", "timestamp"]),
        ("corpus: {roots: [/a, !!float b]}", ["corpus.roots.1", "'b'", "float"]),
        ("corpus: {roots: !!set {a, b}}", ["corpus.roots", "set"]),
        ("storage_path: !!binary czM6Ly9LRVk6U0VDUkVUQGIvYw==", ["storage_path", "binary"]),
    ],
    ids=lambda x: x[:40] if isinstance(x, str) else "",
)
def test_values_that_yaml_cannot_read_are_refused_with_field_value_and_remedy(
    line: str, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(line)
    with pytest.raises(ConfigError) as error:
        load_config([str(tmp_path / "job.yaml")], default=tmp_path / "none.yaml")
    assert [w for w in [*words, "line 1, column", "quotes"] if w not in str(error.value)] == []
    assert len(str(error.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("data", [b"\xff\xfe\x00c", b"\x80abc", "storage_path: é".encode("latin-1")])
def test_files_that_are_no_utf8_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match=r"job\.yaml"):
        load_config([str(tmp_path / "job.yaml")], default=tmp_path / "none.yaml")


def test_a_field_given_twice_is_refused(tmp_path: Path) -> None:
    """YAML alone would take the last one without a word."""
    text = yaml.safe_dump(GOOD[Config]) + "label: {top_k: 3, top_k: 4}\n"
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(ConfigError, match="top_k"):
        load_config([str(tmp_path / "job.yaml")], default=tmp_path / "none.yaml")


def test_a_yaml_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (tmp_path / "job.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError) as error:
        load_config([str(tmp_path / "job.yaml")], default=tmp_path / "none.yaml")
    assert len(str(error.value)) < 10_000


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--train.epochs", v) for v in ("0", "-1", "1.5", "many", "", "\x1b[31m")),
        *(("--train.lr", v) for v in ("0", "-1", "nan", "inf", "fast")),
        ("--label.max-rejected", "2"),
        ("--keep-features", "some"),
        ("--train.n-such-field", "1"),
        ("--views.crop-scale", "1"),
        ("--repair", "perhaps"),
    ],
)
def test_wrong_options_end_with_status_2_and_their_name(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(GOOD[Config]))
    with pytest.raises((ConfigError, SystemExit)) as refused:
        load_config([str(file), option, value], default=file)
    assert isinstance(refused.value, ConfigError) or refused.value.code == 2
    told = f"{refused.value} {capsys.readouterr().err}"
    assert option.rpartition(".")[2].lstrip("-").replace("-", "_") in told.replace("-", "_")


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "a\udcffb/c"], ids=ascii)
@pytest.mark.parametrize("model", [Config, Predict])
def test_text_that_no_file_can_have_for_a_name_is_refused_in_every_field(
    model: type[Section], text: str, tmp_path: Path
) -> None:
    texts = [
        path for path, info in fields(model) if "str" in repr(info.annotation) and "dict" not in repr(info.annotation)
    ]
    assert len(texts) > 6
    for path in texts:
        for value in (text, [text]):
            assert f"{'.'.join(path)} holds a null character" in refusal(
                model, nested(GOOD[model], path, value), tmp_path
            )
    asked = {"compute": {"request": {text: 1}}}
    assert "a name in compute.request holds a null" in refusal(model, {**GOOD[model], **asked}, tmp_path)


def test_neither_torch_nor_ray_is_loaded_for_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**GOOD[Config], "train": {"epochs": 0}}))
    code = (
        "import sys; from pathlib import Path\n"
        "from upl_ray.command_line import load_config, run_job\n"
        f"status = run_job(lambda: load_config([{str(tmp_path / 'job.yaml')!r}], Path('x')) and 0)\n"
        "print(status, sorted({'torch', 'ray', 'open_clip'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["2", "[]"], done.stderr
    assert "epochs" in done.stderr
