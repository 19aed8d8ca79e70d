"""The command line of an installed package: `upl-ray COMMAND ...`, or `python -m upl_ray COMMAND ...`."""

from __future__ import annotations

import ast
import difflib
import sys
from importlib import import_module
from pathlib import Path

from upl_ray.config.cli import run_job
from upl_ray.errors import ConfigError

COMMANDS = ("init", "run", "predict", "report", "compare", "ablate", "export")


def main() -> None:
    """Run the command that the arguments name; exits with its status."""
    sys.exit(run_job(_run))


def _run() -> int:
    name, *args = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: upl-ray COMMAND ...\n\n" + "\n".join(f"  {c:8} {_summary(c)}" for c in COMMANDS))
        print("\n`upl-ray COMMAND --help` lists the arguments of a command.")
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(COMMANDS)}."
        raise ConfigError(f"There is no command {name!r}; {hint}")
    sys.argv = [f"upl-ray {name}", *args]  # for usages, and for what a step records about its origin
    status: int = import_module(f"upl_ray.commands.{name}").main(args)
    return status


def _summary(command: str) -> str:
    """First line of a command's text, without importing it."""
    source = Path(__file__).parent / "commands" / f"{command}.py"
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


if __name__ == "__main__":
    main()
