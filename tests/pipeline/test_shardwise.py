"""Classification in slices equals classification at once."""

import numpy as np
import pytest
import torch

from upl_ray.pipeline.shardwise import ROWS_AT_ONCE, apply_in_slices, classify_in_slices
from upl_ray.upl.ensemble import Ensemble


@pytest.mark.parametrize("rows", [0, 1, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 3])
def test_slices_give_the_probabilities_and_member_labels_of_all_rows(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    text_features = torch.nn.functional.normalize(torch.randn(3, 5, 16, generator=generator), dim=-1)
    features = torch.nn.functional.normalize(torch.randn(rows, 16, generator=generator), dim=-1).half()
    metadata = {"classnames": list("abcde"), "logit_scale": 20.0, "ensemble": "probabilities"}
    ensemble = Ensemble(text_features, torch.zeros(3, 4, 8), metadata)
    probabilities, member_labels = classify_in_slices(features.numpy(), ensemble)
    assert (probabilities.shape, probabilities.dtype) == ((rows, 5), np.float32)
    assert (member_labels.shape, member_labels.dtype) == ((rows, 3), np.int32)
    expected, expected_labels = ensemble.classify(features)
    np.testing.assert_allclose(probabilities, expected.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(member_labels, expected_labels.numpy())
    np.testing.assert_array_equal(apply_in_slices(features.numpy(), ensemble.probabilities, 5), probabilities)
