"""How class suffixes are packed into blocks of equal size."""

from __future__ import annotations

import random

import pytest

from upl_ray.upl.packed_text import SIZES, SMALLEST_BLOCK, choose_blocks, fill_blocks


@pytest.mark.parametrize("seed", range(20))
def test_every_class_stands_in_one_block_and_no_block_overflows(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(3, 20) for _ in range(rng.randint(1, 300))]
    size = rng.randint(20, 60)
    blocks = fill_blocks(lengths, size)
    assert sorted(c for block in blocks for c in block) == list(range(len(lengths)))
    used = [sum(lengths[c] for c in block) for block in blocks]
    assert max(used) <= size
    # No block's classes would fit into the room that another one has left: there is no cheaper merge of two.
    assert all(a + b > size for i, a in enumerate(used) for b in used[:i])


def test_padding_is_little_where_there_are_many_classes() -> None:
    rng = random.Random(0)
    lengths = [rng.choice([3, 4, 4, 4, 5, 5, 6, 7, 9]) for _ in range(1000)]
    size, blocks = choose_blocks(lengths)
    assert SMALLEST_BLOCK <= size < SMALLEST_BLOCK + SIZES
    assert len(blocks) * size < 1.02 * sum(lengths)


@pytest.mark.parametrize("lengths", [[3], [60], [60, 3, 3], [3, 4, 5]])
def test_few_or_long_classes_need_few_blocks(lengths: list[int]) -> None:
    size, blocks = choose_blocks(lengths)
    assert size >= max(lengths)
    assert len(blocks) * size <= max(SMALLEST_BLOCK, sum(lengths))


def test_a_block_size_is_chosen_without_regard_to_the_order_of_classes() -> None:
    lengths = [random.Random(1).randint(3, 12) for _ in range(50)]
    assert choose_blocks(lengths)[0] == choose_blocks(sorted(lengths))[0]
