"""The command line of the jobs: a YAML file, then typed overrides; errors as one sentence and an exit status."""

from __future__ import annotations

import io
import json
import logging
import os
import select
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import tyro
import yaml
from pydantic import ValidationError

from upl_ray.config.redact import reject_secrets, sanitized
from upl_ray.config.settings import Config, Predict, Section, describe_validation_error
from upl_ray.errors import ConfigError, JobError, Stopped, StoppedAtStart, describe_error

Job = TypeVar("Job", bound=Section)

USAGE: dict[type[Section], str] = {Config: "[CONFIG.yaml]", Predict: "[CLASSIFIER CORPUS | CONFIG.yaml]"}
# `--help` begins with the fields that people set first.
FIRST: dict[type[Section], tuple[str, ...]] = {
    Config: (
        *("corpus.uri", "corpus.labels", "classnames", "template", "backbones", "target", "variants"),
        *("storage_path", "label.top_k", "train.members"),
    ),
    Predict: ("classifier", "corpus.uri", "storage_path", "model", "max_rejected", "drift.fail"),
}


def _use_utf8() -> None:
    """Start this process once more in Python's UTF-8 mode, where the locale has another encoding.

    Names of files are UTF-8 in the configuration, in storage, on the nodes and to pyarrow.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _why_unfit() -> str:
    """A sentence where no job can run in this process, as libraries would only say in their tracebacks."""
    if sys.flags.optimize > 1:
        return "Ray cannot be imported without docstrings; unset PYTHONOPTIMIZE, or leave out -OO."
    try:
        os.getcwd()
    except FileNotFoundError:
        return "The working folder has been removed; change into another one."
    return ""


def _set_variables() -> None:
    """Variables that libraries read when they are imported, which the job does."""
    # Under `uv run` Ray would pack the working folder for every worker, even of a Ray that is on this machine alone.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Notebooks name a backend of their own kernel to every command, which this environment need not have.
    os.environ["MPLBACKEND"] = "agg"
    # Ray's processes, and its parts in this one, would die of warnings that are nobody's here.
    given = [option for option in os.environ.get("PYTHONWARNINGS", "").split(",") if option]
    kept = [option for option in given if not option.startswith("e")]  # error, or a part of it
    if kept != given:
        os.environ["PYTHONWARNINGS"] = ",".join(kept)
        warnings.filters[:] = [f for f in warnings.filters if f[0] != "error"]  # type: ignore[index]
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):  # as by default
            warnings.simplefilter("ignore", kind, append=True)


def _open_streams() -> None:
    """Let streams that the caller has closed (`2>&-`) lead nowhere.

    Else the next files that are opened would take their numbers, and what libraries print would be written into them.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None and os.open(os.devnull, os.O_RDWR) == number:  # the lowest that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))


def run_job(job: Callable[[], int]) -> int:
    """Run a job's body with its log on the terminal.

    SIGTERM, and SIGHUP unless it is ignored (nohup), end the job as Ctrl-C does: actors and trials go with it, and the
    last line reports it. A second one kills.
    However a job fails, its last line is JSON for programs; a mistake in the program ends with its traceback before it.

    Returns:
        The body's status; 2 where the configuration cannot work, 1 where the job cannot go on, and, as a shell has it,
        128 + the signal's number where one stopped it.
    """
    _use_utf8()
    _open_streams()
    if unfit := _why_unfit():
        return _report("failed", unfit, 2)
    _set_variables()
    sys.excepthook = _report_unexpected
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that a locale's encoding lacks, as stderr does it
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        raise Stopped

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    handler = logging.StreamHandler()
    handler.setFormatter(_SanitizedFormatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("upl_ray").setLevel(logging.INFO)
    try:
        status = job()
        print(end="", flush=True)  # here, and not when Python ends: a reader may have closed it
        return status
    except ConfigError as error:
        return _report("failed", str(error), 2)
    except (JobError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _drop_closed_stdout():
            return 128 + signal.SIGPIPE
        return _report("failed", describe_error(error), 1)
    except KeyboardInterrupt as error:
        reason = "stopped by a signal; what is finished stays in storage, and the same command goes on from there"
        other: int = error.args[0] if isinstance(error, StoppedAtStart) else signal.SIGINT
        status = _report("stopped", reason, 128 + (received[0] if received else other))
        if isinstance(error, StoppedAtStart):
            _drop_what_cannot_be_written()
            os._exit(status)
        return status
    except SystemExit as exit_:  # of the parsers of options, which have given the reason; or after `--help`
        _drop_closed_stdout()
        if exit_.code:
            _print_json_line("failed", "the command line is refused; the reason stands above")
        raise
    finally:
        _drop_what_cannot_be_written()


def _drop_closed_stdout() -> bool:
    """Send the output nowhere if its reader has closed it, as `| head` does; True if so."""
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return closed


def _drop_what_cannot_be_written() -> None:
    """Let output for which there is no room lead nowhere: Python would write it when it ends, and change the status."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _report(status: str, message: str, code: int) -> int:
    """Print how the job ended, for people and for programs, and return its exit status."""
    with suppress(OSError):  # a full disk, here and below, changes no status
        print(f"error: {sanitized(message)}", file=sys.stderr)
    _print_json_line(status, message)
    return code


def _print_json_line(status: str, message: str) -> None:
    _drop_closed_stdout()
    with suppress(OSError):
        print(json.dumps({"status": status, "error": sanitized(message)}), flush=True)


def _report_unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's hook for an exception that nothing catches: its traceback, then the line for programs."""
    sys.__excepthook__(kind, error, trace)
    _print_json_line("failed", describe_error(error))
    _drop_what_cannot_be_written()


class _SanitizedFormatter(logging.Formatter):
    """Log lines hold names and errors from outside, none of which reaches the terminal as a command."""

    def format(self, record: logging.LogRecord) -> str:
        return sanitized(super().format(record))


def load_config(args: list[str], default: Path) -> Config:
    """Read `[FILE.yaml] [--field value ...]` of the main job; without a file, `default`.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or a field in it is refused.
        SystemExit: status 2 where a command-line option is refused, 0 after `--help`.
    """
    path, rest = _split_file(reject_secrets(args), default)
    return _override(Config, _read_yaml(path, default), path, rest)


def load_predict(args: list[str], default: Path) -> Predict:
    """Read `CLASSIFIER CORPUS [--field value ...]` or `[FILE.yaml] [--field value ...]` of the nightly job.

    Raises:
        ConfigError, SystemExit: see `load_config`.
    """
    places = reject_secrets(args)[:2]
    if len(places) == 2 and not any(p.startswith("-") for p in places):
        data = {"classifier": places[0], "corpus": {"uri": places[1]}}
        return _override(Predict, data, Path("the command line"), args[2:])
    path, rest = _split_file(args, default)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{str(path)!r} alone is not enough; name a classifier and a corpus, or one YAML file.")
    return _override(Predict, _read_yaml(path, default), path, rest)


def _split_file(args: list[str], default: Path) -> tuple[Path, list[str]]:
    return (Path(args[0]), args[1:]) if args and not args[0].startswith("-") else (default, args)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but a field that is given twice is refused, and so are names that YAML changes.

    Dates stay text.
    """

    yaml_constructors = {  # noqa: RUF012 - as PyYAML declares it
        **yaml.SafeLoader.yaml_constructors,
        "tag:yaml.org,2002:timestamp": yaml.SafeLoader.construct_yaml_str,
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (name := str(key.value)) in seen:
                problem = f"{name!r} is given twice; keep one of them"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        if not all(isinstance(name, str) for name in mapping):
            problem = "the name of a field is no text; put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        for key, value in node.value:
            if key.value in ("classnames", "negatives") and isinstance(value, yaml.SequenceNode):
                self._reject_changed(value)
        return mapping

    def _reject_changed(self, names: yaml.SequenceNode) -> None:
        """Refuse what is no longer what stands in the file: `001` is 1, `1_000` is 1000, `no` is false."""
        for item in names.value:
            if isinstance(item, yaml.ScalarNode) and str(value := self.construct_object(item)) != item.value:
                mark = item.start_mark
                raise ConfigError(
                    f"YAML reads the name {item.value!r} as {value!r} (line {mark.line + 1}, column "
                    f"{mark.column + 1}); put it in quotes."
                )


def _read_yaml(path: Path, example: Path) -> dict[str, Any]:
    """The fields of a YAML file in UTF-8, whatever the locale."""
    if not os.path.isfile(path):  # pathlib's would raise for a name that is too long
        raise ConfigError(f"The configuration file {str(path)!r} does not exist; name a YAML file such as {example}.")
    try:
        data = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start + 1}); save it in that encoding.") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:  # of numbers, tags, nesting
        raise ConfigError(f"{path} is not YAML: {_yaml_problem(error)}; correct it.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no `field: value` pairs; start from {example}.")
    return data


def _yaml_problem(error: Exception) -> str:
    """Problem and place, without the line itself: PyYAML cuts it, and half of a secret is not recognised as one."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return " ".join((error.problem or error.context or "").split()) + where


def _override(model: type[Job], data: dict[str, Any], source: Path, args: list[str]) -> Job:
    try:
        config = model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe_validation_error(error)}") from None
    about = [f"{model.__doc__}\n\nFields that people set first:", *_first_fields(model)]
    about += [f"\nAll options, with the values of {source.name}:"]
    return tyro.cli(
        model,
        default=config,
        config=(tyro.conf.FlagConversionOff,),
        args=args,
        prog=f"{Path(sys.argv[0]).name} {USAGE[model]}",
        description="\n".join(about),
    )


def _first_fields(model: type[Section]) -> Iterator[str]:
    """Lines of `--help` about the fields that people set first."""
    for field in FIRST[model]:
        section, _, name = field.rpartition(".")
        owner: Any = model.model_fields[section].annotation if section else model
        yield f"  {field}"
        yield textwrap.indent(textwrap.fill(owner.model_fields[name].description, 74), " " * 6)
