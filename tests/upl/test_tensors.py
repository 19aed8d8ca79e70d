"""Tensor files: what is written comes back, equal content is equal bytes, and damage is found."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from upl_ray.errors import Damaged, JobError
from upl_ray.upl.tensors import KEY, load_tensors, save_tensors

TENSORS = {"ctx": torch.arange(6.0).reshape(2, 3), "half": torch.ones(5, dtype=torch.float16)}


def test_tensors_come_back_from_a_plain_safetensors_file(tmp_path: Path) -> None:
    data = save_tensors(TENSORS, {"classnames": ["ä", "b"]})
    tensors, about = load_tensors(data, "x")
    assert about == {"classnames": ["ä", "b"]}
    assert all(torch.equal(tensors[k], v) for k, v in TENSORS.items())
    (tmp_path / "file").write_bytes(data)
    with safetensors.safe_open(tmp_path / "file", "pt") as file:
        assert all(torch.equal(file.get_tensor(k), v) for k, v in TENSORS.items())


def test_every_flipped_bit_and_every_cut_of_tensors_is_found() -> None:
    data = save_tensors(TENSORS, {"classnames": ["ä", "b"]})
    for i in range(len(data)):
        flipped = data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :]
        for altered in (data[:i], flipped):
            try:
                tensors, about = load_tensors(altered, "its name")
            except Damaged:
                continue
            # Only what means the same may pass: other white space in the header.
            assert about == {"classnames": ["ä", "b"]}
            assert all(torch.equal(tensors[k], v) for k, v in TENSORS.items())


def test_a_file_without_a_hash_is_of_an_older_version_and_not_damaged() -> None:
    data = safetensors.torch.save({"a": torch.zeros(2)}, {KEY: "{}"})
    with pytest.raises(JobError, match=r"^x was written by an older version\. Delete it and run") as error:
        load_tensors(data, "x")
    assert not isinstance(error.value, Damaged)


def test_equal_content_is_equal_bytes() -> None:
    """Safetensors keeps its metadata in a hash map: with two keys the bytes changed from one call to the next."""
    assert len({save_tensors(TENSORS, {"b": 1, "a": [2]}) for _ in range(50)}) == 1
    assert save_tensors(TENSORS, {"a": [2], "b": 1}) == save_tensors(TENSORS, {"b": 1, "a": [2]})
