"""The uniform sample: chosen by ids alone, nested, of the expected size."""

import numpy as np
import pytest

from upl_ray.upl.sampling import sampled, sampling_rate

IDS = [f"folder/{i}.jpg" for i in range(20_000)]


def test_a_sample_has_its_share_and_lies_in_every_larger_one() -> None:
    small, large = (set(sampled(IDS, rate)) for rate in (0.05, 0.3))
    assert small < large
    for chosen, rate in ((small, 0.05), (large, 0.3)):
        assert abs(len(chosen) - rate * len(IDS)) < 4 * np.sqrt(rate * (1 - rate) * len(IDS))


def test_the_sample_depends_on_ids_and_not_on_their_order_or_on_who_else_is_there() -> None:
    chosen = {IDS[i] for i in sampled(IDS, 0.1)}
    some = list(reversed(IDS[1000:3000]))
    assert {some[i] for i in sampled(some, 0.1)} == chosen & set(some)


def test_everything_is_chosen_where_there_are_fewer_images_than_wanted() -> None:
    assert sampled(IDS[:3], sampling_rate(64, 10, 3)) == [0, 1, 2]
    assert sampling_rate(64, 10, 6400) == pytest.approx(0.1)
    assert sampling_rate(64, 10, 0) == 1
