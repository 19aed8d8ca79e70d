"""The command line of the jobs: a YAML file, then typed overrides; errors as one sentence and an exit status."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import tyro
import yaml
from pydantic import ValidationError

from upl_ray.addresses import flaws, shown
from upl_ray.config import Config
from upl_ray.predict_config import Predict
from upl_ray.section import ConfigError, JobError, Section, sentence, told

Job = TypeVar("Job", bound=Section)

PLACES: dict[type[Section], str] = {Config: "[CONFIG.yaml]", Predict: "[CLASSIFIER CORPUS | CONFIG.yaml]"}
PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")  # what fields may be, in YAML's words
DEEPEST = 50  # sections and lists in one another; five are in use, and Python itself gives up at some hundred


def run_job(job: Callable[[], int]) -> int:
    """Run a job's body with its log on the terminal.

    SIGTERM ends the job as Ctrl-C does: actors and trials go with it, and its last line says so. A second one kills.
    However a job fails, its last line is JSON for programs; a mistake in the program ends with its traceback before it.

    Returns:
        What the body returns; 2 where the configuration cannot work, 1 where the job cannot go on, and, as a shell has
        it, 128 + the signal's number where one stopped it.
    """
    sys.excepthook = _last_word
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    handler = logging.StreamHandler()
    handler.setFormatter(_Shown("%(asctime)s  %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("upl_ray").setLevel(logging.INFO)
    try:
        return job()
    except ConfigError as error:
        return _ended("failed", shown(str(error)), 2)
    except (JobError, OSError) as error:
        return _ended("failed", shown(told(error)), 1)
    except KeyboardInterrupt:
        reason = "stopped by a signal; what is finished stays in storage, and the same command goes on from there"
        return _ended("stopped", reason, 128 + (received[0] if received else signal.SIGINT))
    except SystemExit as left:  # of the parsers of options, which have said why; or after `--help`, which is no failure
        if left.code:
            print(_json("failed", "the command line is refused; the reason stands above"))
        raise


def _ended(status: str, told: str, code: int) -> int:
    """Tell people and programs how the job ended, and return its exit status."""
    print(f"error: {told}", file=sys.stderr)
    print(_json(status, told))
    return code


def _json(status: str, told: str) -> str:
    return json.dumps({"status": status, "error": told})


def _last_word(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python calls for an exception that nobody expected: its traceback, then the line for programs."""
    sys.__excepthook__(kind, error, trace)
    print(_json("failed", shown(told(error))))


class _Shown(logging.Formatter):
    """Lines that hold names and errors from outside, none of which reaches the terminal as a command."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def load_config(args: list[str], default: Path) -> Config:
    """Read `[FILE.yaml] [--field value ...]` of the main job; without a file, `default`.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or a field in it is refused.
        SystemExit: status 2 where a command-line option is refused, 0 after `--help`.
    """
    path, rest = _file_first(plain(args), default)
    return _override(Config, _read_yaml(path, default), path, rest)


def load_predict(args: list[str], default: Path) -> Predict:
    """Read `CLASSIFIER CORPUS [--field value ...]` or `[FILE.yaml] [--field value ...]` of the nightly job.

    Raises:
        ConfigError, SystemExit: see `load_config`.
    """
    places = plain(args)[:2]
    if len(places) == 2 and not any(p.startswith("-") for p in places):
        data = {"classifier": places[0], "corpus": {"uri": places[1]}}
        return _override(Predict, data, Path("the command line"), args[2:])
    path, rest = _file_first(args, default)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{str(path)!r} alone is not enough; name a classifier and a corpus, or one YAML file.")
    return _override(Predict, _read_yaml(path, default), path, rest)


def plain(args: list[str]) -> list[str]:
    """Refuse arguments with credentials before anything repeats them."""
    found = next(flaws(args, "An argument"), None)
    if found:
        raise ConfigError(" ".join(found) + ".")
    return args


def _file_first(args: list[str], default: Path) -> tuple[Path, list[str]]:
    return (Path(args[0]), args[1:]) if args and not args[0].startswith("-") else (default, args)


class _Loader(yaml.SafeLoader):
    """Plain values only, each field once: YAML itself takes the last of two, and aliases can grow without bound."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.place: list[str] = []  # the field that is read, from the outermost section on

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read; write the value out", mark)
        if len(self.place) > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"more than {DEEPEST} brackets or sections are nested", mark)
        # A field, a place in a list, or None for a key.
        name = index.value if isinstance(index, yaml.ScalarNode) else index
        self.place.append("" if name is None else str(name))
        node: Any = super().compose_node(parent, index)
        node.field = ".".join(n for n in self.place if n)
        self.place.pop()
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        doubled = next((n for n in names if names.count(n) > 1), None)
        if doubled is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{doubled!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        told = f"{shown(node.value)[:40]!r}" if isinstance(node, yaml.ScalarNode) else "what stands there"
        wrong = f"{node.field}: {told} is read as `{kind}`, "
        if kind not in PLAIN:
            wrong += "which no field is; put text in quotes"
            raise yaml.constructor.ConstructorError(None, None, wrong.removeprefix(": "), node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, ArithmeticError):  # of int() and float(), and of PyYAML's table of bool
            wrong += "and is none; mend it, or put text in quotes"
            raise yaml.constructor.ConstructorError(None, None, wrong.removeprefix(": "), node.start_mark) from None


def _read_yaml(path: Path, example: Path) -> dict[str, Any]:
    if not os.path.isfile(path):  # pathlib's would raise for a name that is too long
        raise ConfigError(f"The configuration file {str(path)!r} does not exist; name a YAML file such as {example}.")
    try:
        data = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {_problem(error)}.") from None
    if not isinstance(data, dict) or not all(isinstance(k, str) for k in _keys(data)):
        raise ConfigError(f"{path} holds no `field: value` pairs; start from {example}.")
    return data


def _problem(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """What is wrong and where, without the line itself: cut as PyYAML cuts it, a secret in it is not recognised."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return " ".join((error.problem or error.context or "").split()) + where


def _override(model: type[Job], data: dict[str, Any], source: Path, args: list[str]) -> Job:
    try:
        config = model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {sentence(error)}") from None
    return tyro.cli(
        model,
        default=config,
        config=(tyro.conf.FlagConversionOff,),
        args=list(_spelled_out(args)),
        prog=f"{Path(sys.argv[0]).name} {PLACES[model]}",
        description=f"{model.__doc__} Values shown are those of {source.name}.",
    )


def _spelled_out(args: list[str]) -> Iterator[str]:
    """`--repair` alone means `--repair True`: it is an order, where all other fields are settings."""
    for i, argument in enumerate(args):
        yield argument
        if argument == "--repair" and all(a.startswith("-") for a in args[i + 1 : i + 2]):
            yield "True"


def _keys(data: Any) -> Iterator[Any]:
    """All keys of nested mappings."""
    for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from _keys(value)
    if isinstance(data, dict):
        yield from data
