"""The reference of all fields, made of the settings: `python -m upl_ray.config.reference > docs/configuration.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from upl_ray.config.settings import Ablate, Compare, Config, Predict, Section

HEAD = """# Configuration

Every job reads one YAML file; any field can be overridden on the command line (`--train.epochs 10`). The fields of a
section stand below its name:

```yaml
corpus: {uri: photos}
train:
  epochs: 10
```

`None` is written `null` in YAML. Units stand in brackets. "Paper" is
[Unsupervised Prompt Learning](https://arxiv.org/abs/2204.03649), sections 4.1 and 4.2; "ours" is a choice made here.

This page is made of `upl_ray/config/settings.py` by `python -m upl_ray.config.reference > docs/configuration.md`.
"""
JOBS: tuple[tuple[str, str, type[Section], str], ...] = (
    ("Main job", "jobs/upl.py", Config, ""),
    ("Nightly job", "jobs/predict.py", Predict, ""),
    ("Compare", "jobs/compare.py", Compare, "compare"),
    ("Ablate", "jobs/ablate.py", Ablate, "ablate"),
)


def reference() -> str:
    """The whole page, in Markdown."""
    lines = [HEAD]
    known: dict[type[Section], str] = {}  # sections that a table has, and their names there
    for title, script, model, prefix in JOBS:
        lines += [f"## {title}\n", f"`python {script}`. {_intro(model, prefix)}\n"]
        lines += ["| field | default | meaning |", "|---|---|---|", *_rows(model, prefix, known), ""]
    return "\n".join(lines)


def _intro(model: type[Section], prefix: str) -> str:
    text = " ".join((model.__doc__ or "").split())
    return f"{text} It reads the main job's file, too." if prefix else text


def _rows(model: type[Section], prefix: str, known: dict[type[Section], str]) -> Iterator[str]:
    """One row for each field; a section that stood before is named instead of repeated."""
    for name, info in model.model_fields.items():
        field = f"{prefix}.{name}" if prefix else name
        section, item = _section_of(info)
        if section in (Compare, Ablate):
            continue
        yield f"| `{field}` | {_default(info, section)} | {_meaning(info, section, known)} |"
        if section and section not in known:
            known[section] = field
            yield from _rows(section, field + item, known)


def _section_of(info: FieldInfo) -> tuple[type[Section] | None, str]:
    """The section that a field holds, if it does; and of a list or mapping of them, how one item is written."""
    inner = get_args(info.annotation)
    for candidate in (info.annotation, *inner):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate, (".NAME" if get_origin(info.annotation) is dict else "[]") if inner else ""
    return None, ""


def _default(info: FieldInfo, section: type[Section] | None) -> str:
    if info.is_required():
        return "required"
    if section:
        return ""
    return f"`{_yaml(info.default)}`"


def _yaml(value: Any) -> str:
    """The value as one writes it in YAML."""
    if isinstance(value, tuple):
        return f"[{', '.join(_yaml(v) for v in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if value != "" else '""'


def _meaning(info: FieldInfo, section: type[Section] | None, known: dict[type[Section], str]) -> str:
    text = (info.description or "").replace("|", "\\|")
    choices = [c for c in _choices(info.annotation) if c]
    if choices:
        text += f" One of {', '.join(f'`{c}`' for c in choices)}."
    if section in known:
        text += f" Fields as in `{known[section]}` above."
    return text


def _choices(annotation: Any) -> list[Any]:
    """The values of a Literal, also of one inside a list."""
    inner = get_args(annotation)
    if inner and all(isinstance(i, str) for i in inner):
        return list(inner)
    return list(dict.fromkeys(c for i in inner for c in _choices(i)))


if __name__ == "__main__":
    print(reference(), end="")
