"""What the parts of the configuration are made of: a frozen, typed section that refuses in sentences; two errors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from upl_ray.addresses import flaws


class ConfigError(ValueError):
    """A configuration that cannot work: one sentence with the field, the value and the remedy."""


class JobError(RuntimeError):
    """A job that cannot go on: one sentence with the reason and the remedy; what is finished stays in storage."""


def storage_fails(reason: object) -> str:
    """What a job says that cannot go on for an OSError: a full disk, a storage that does not answer."""
    line = (str(reason) or type(reason).__name__).splitlines()[0].rstrip(".")
    return f"A file cannot be read or written ({line}); mend that and run the job again: what is finished stays."


def told(error: BaseException) -> str:
    """What people and programs are told of the error that a job ends with."""
    if isinstance(error, ConfigError | JobError):
        return str(error)
    if isinstance(error, OSError):
        return storage_fails(error)
    lines = [line for line in str(error).splitlines() if line.strip()]  # Ray's own hold whole tracebacks
    return f"unexpected {type(error).__name__}: {' ... '.join(dict.fromkeys([*lines[:1], *lines[-1:]]))}"


def sentence(error: ValidationError, prefix: str = "") -> str:
    """One line for every field that pydantic refused: where, what was given, what is wanted."""
    lines = []
    for e in error.errors():
        field = ".".join(str(p) for p in (prefix, *e["loc"]) if p != "")
        message = e["msg"].removeprefix("Value error, ").replace("Input should be", "it should be")
        if e["type"] == "extra_forbidden":
            message = "there is no such field; `--help` lists all fields"
        elif e["type"] == "missing":
            message = "this field is required"
        elif isinstance(e["input"], str | int | float | bool):
            message = f"{message}; it is {e['input']!r}"
        message = message.rstrip(".")
        lines.append(f"{field}: {message}." if field else f"{message}.")
    return "\n".join(lines)


class Section(BaseModel):
    """Base of every part of the configuration: frozen, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, data: Any) -> Any:
        found = next(flaws(data), None)
        if found:  # told without the value, which pydantic would repeat for a field
            raise ValueError(f"{found[0]} {found[1]}")
        return data

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise ConfigError(sentence(error)) from None


class Job(Section):
    """Base of the configuration of a job that keeps its work in storage."""

    repair: bool = Field(
        False, description="First check all files in storage against their hashes, and make damaged ones anew."
    )
