"""Tokenizers of published families: open_clip's own wrappers around a small vocabulary of letters."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer

LENGTH = 20  # L


class Letters:
    """Stands for a tokenizer of Hugging Face: a token a letter, between `before` and `behind`, then padding."""

    bos_token_id, eos_token_id, cls_token_id, sep_token_id = 2, 3, 4, 5

    def __init__(self, before: list[int], behind: list[int], pad: int) -> None:
        self.before, self.behind, self.pad_token_id = before, behind, pad

    def __call__(self, texts: list[str], max_length: int = 0, add_special_tokens: bool = True, **_: Any) -> Any:
        letters = [[ord(c) for c in text] for text in texts]
        if not add_special_tokens:
            return {"input_ids": letters}
        room = max_length - len(self.before) - len(self.behind)
        rows = [[*self.before, *row[:room], *self.behind] for row in letters]
        ids = [row + [self.pad_token_id] * (max_length - len(row)) for row in rows]
        return SimpleNamespace(input_ids=torch.tensor(ids))


def wrapped(kind: type, inner: Letters, **fields: Any) -> Any:
    tokenizer = kind.__new__(kind)  # its constructor downloads a vocabulary
    vars(tokenizer).update(tokenizer=inner, context_length=LENGTH, **fields)
    return tokenizer


def hugging_face(inner: Letters, mode: str = "", strip: bool = False) -> Any:
    return wrapped(HFTokenizer, inner, tokenizer_mode=mode, clean_fn=str.lower, strip_sep_token=strip)


# name -> the tokenizer, and how many letters of a text it reads
TOKENIZERS: dict[str, tuple[Callable[[], Any], int]] = {
    "siglip": (lambda: wrapped(SigLipTokenizer, Letters([], [1], pad=1)), LENGTH - 1),  # padding is the end token
    "clipa": (lambda: hugging_face(Letters([4], [5], pad=0), strip=True), LENGTH - 2),  # no end token is left
    "bert": (lambda: hugging_face(Letters([4], [5], pad=0)), LENGTH - 2),
    "gemma": (lambda: hugging_face(Letters([], [1], pad=0)), LENGTH - 1),
    "no end": (lambda: hugging_face(Letters([4], [], pad=0)), LENGTH - 1),
    "clips": (lambda: hugging_face(Letters([], [], pad=0), mode="clips"), LENGTH - 3),  # a class token behind all
}
