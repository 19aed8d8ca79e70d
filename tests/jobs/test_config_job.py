"""The main job's manners: exit status, one clear sentence for each refusal, and help that documents every field."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from upl_ray.config.cli import FIRST
from upl_ray.config.settings import Backbone, Config

ROOT = Path(__file__).parents[2]
GOOD: dict[str, Any] = {"corpus": {"uri": "/images"}, "classnames": ["cat", "dog"], "backbones": ["RN50/openai"]}


def job(*args: str, name: str = "upl") -> tuple[int, str, str]:
    """Run a job: exit status, standard output, standard error without the box that tyro draws."""
    command = [sys.executable, str(ROOT / f"jobs/{name}.py"), *args]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)
    return done.returncode, done.stdout, " ".join(re.sub(r"[─│╭╮╰╯]", " ", done.stderr).split())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nope.yaml"], ["error: The configuration file 'nope.yaml' does not exist"]),
        (["{file}", "--train.epochz", "3"], ["--train.epochz", "--train.epochs"]),
        (["{file}", "--train.epochs", "0"], ["epochs", "greater than or equal to 1; it is 0"]),
        (["{file}"], ["error: corpus: The images under '/images' cannot be listed"]),
    ],
)
def test_the_job_exits_2_with_a_clear_sentence(tmp_path: Path, args: list[str], words: list[str]) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "storage_path": str(tmp_path / "results")}))
    status, out, err = job(*(a.format(file=path) for a in args))
    (line,) = out.splitlines()
    assert (status, json.loads(line)["status"]) == (2, "failed")
    assert [w for w in words if w not in err] == []
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["upl", "predict", "report"])
def test_a_secret_on_the_command_line_is_not_repeated(name: str) -> None:
    status, out, err = job("run", "--storage-path=s3://KEY:SECRET@bucket/x", name=name)
    assert status == 2
    assert "holds credentials" in err
    assert "SECRET" not in out + err


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and description of every field of a model and its sections; a backbone is item 0 of its tuple.

    Mappings are left out: an option has the key in its name, so there is none before the YAML file names a key.
    """
    for name, field in model.model_fields.items():
        if get_origin(field.annotation) is dict:
            continue
        yield f"{prefix}{name}", field.description or ""
        inner = get_args(field.annotation) if get_args(field.annotation) else (field.annotation,)
        for section in inner:
            if isinstance(section, type) and issubclass(section, BaseModel):
                yield from fields(section, f"{prefix}{name}.0." if section is Backbone else f"{prefix}{name}.")


def test_help_begins_with_ten_fields_and_documents_every_one() -> None:
    status, out, _ = job("--help")
    first = re.findall(r"^  (\S+)$", out.partition("All options")[0], re.MULTILINE)
    assert tuple(first) == FIRST[Config]
    assert len(first) == 10
    text = " ".join(re.sub(r"[─│╭╮╰╯]", " ", out.partition("All options")[2]).split())
    documented = dict(fields(Config))
    assert status == 0
    assert len(documented) > 40
    assert [name for name, description in documented.items() if not description] == []
    sections = {name.split(".")[0] for name in documented if "." in name}
    options = [name for name in documented if name not in sections]
    assert [name for name in options if f"--{name.replace('_', '-')} " not in text] == []
    assert [name for name in options if documented[name] not in text] == []
    assert [name for name in sections - {"backbones"} if documented[name] not in text] == []
