"""The committed reference of all fields is made of the settings."""

from pathlib import Path

from upl_ray.config.reference import reference

PAGE = Path(__file__).parents[2] / "docs/configuration.md"


def test_the_committed_reference_is_current() -> None:
    command = "python -m upl_ray.config.reference > docs/configuration.md"
    assert PAGE.read_text(encoding="utf-8") == reference(), f"run: {command}"
