"""A small byte-pair-encoding file for open_clip's SimpleTokenizer: every caption word becomes one token."""

import gzip
from collections import Counter
from itertools import pairwise
from pathlib import Path


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Merge the most frequent pair (ties: alphabetical) until every word is one symbol."""
    spellings = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for word in spellings for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spellings = [_merge(word, best) for word in spellings]
    return merges


def write_bpe(path: Path, merges: list[tuple[str, str]]) -> None:
    """Write a header line and one merge a line, gzipped without a time stamp so that equal merges give equal bytes."""
    text = "\n".join(["#version: upl_ray demo", *(" ".join(pair) for pair in merges)])
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged
