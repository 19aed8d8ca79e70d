"""Unsupervised Prompt Learning for CLIP as a resumable batch job on Ray (UPL, arXiv 2204.03649)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upl_ray.upl.classifier import load_classifier
else:

    def __getattr__(name: str) -> object:
        if name != "load_classifier":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from upl_ray.upl.classifier import load_classifier  # torch takes seconds to load

        return load_classifier


__all__ = ["load_classifier"]
__version__ = "0.1.0"
