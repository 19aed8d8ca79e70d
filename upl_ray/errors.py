"""The errors of the jobs, and how an error is described in one sentence."""

from __future__ import annotations

LONGEST_VALUE = 80  # letters of a value that an error repeats


class ConfigError(ValueError):
    """A configuration that cannot work: one sentence with the field, the value and the remedy."""


class JobError(RuntimeError):
    """A job that cannot go on: one sentence with the reason and the remedy; what is finished stays in storage."""


class Damaged(JobError):
    """A file in storage that is not what was written there: one sentence with the file and the remedy."""


class Stopped(KeyboardInterrupt):
    """A signal that ends the job. Where the plain exception passes an `exec`, `python -m` ends by SIGINT in the end."""


class StoppedAtStart(Stopped):
    """A signal, by its number, that came while Ray started: Python must end without its clean-up, where Ray crashes."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without the full stop."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def quoted(value: object) -> str:
    """A value that stands in the user's data, for an error: in quotes, and cut in the middle where it is long.

    The end stays because a path's last part is the name that its owner knows.
    """
    if isinstance(value, str) and len(repr(value)) > LONGEST_VALUE:
        half = LONGEST_VALUE // 2 - 4
        value = f"{value[:half]} ... {value[-half:]}"
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def describe_storage_error(reason: str) -> str:
    """The sentence of a job that stops at an OSError: a full disk, a storage that does not answer."""
    return f"A file cannot be read or written ({reason}); repair that and run the job again: finished work is kept."


def describe_error(error: BaseException) -> str:
    """One sentence about the error that a job ends with, for people and programs."""
    if isinstance(error, ConfigError | JobError):
        return str(error)
    if isinstance(error, OSError):
        return describe_storage_error(first_line(error))
    lines = [line for line in str(error).splitlines() if line.strip()]  # Ray's own hold whole tracebacks
    return f"unexpected {type(error).__name__}: {' ... '.join(dict.fromkeys([*lines[:1], *lines[-1:]]))}"
