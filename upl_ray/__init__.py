"""Unsupervised Prompt Learning for CLIP as a resumable batch job on Ray (UPL, arXiv 2204.03649)."""

__version__ = "0.1.0"
