"""Class names: cleaned, in order, each once."""

import pytest

from upl_ray.config.classnames import check_classnames
from upl_ray.errors import ConfigError


def test_class_names_are_cleaned_and_kept_in_order() -> None:
    assert check_classnames(["sea_horse", " ice  cream ", "Cat"]) == ("sea horse", "ice cream", "Cat")


def test_as_many_class_names_as_imagenet_21k_has() -> None:
    names = [f"class {i}" for i in range(21_000)]
    assert check_classnames(names) == tuple(names)
    with pytest.raises(ConfigError, match="'class 20999' stands more than once"):
        check_classnames([*names, "class_20999"])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat", "dog", "cat"], "'cat' stands more than once"),
        (["sea_horse", "sea horse"], "'sea horse' stands more than once"),
        (["cat", "", "dog"], "2 of 3 is empty"),
        (["cat", " _ "], "2 of 2 is empty"),
        (["cat"], "class names is 1, .* at least 2"),
        ([], "class names is 0; .* at least 2"),
    ],
)
def test_useless_class_names_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_classnames(names)
