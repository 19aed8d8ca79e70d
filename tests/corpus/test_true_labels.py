"""Class names and true labels from folders and columns: what cannot be meant is refused, the rest is counted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from corpora import listed, write_files

from upl_ray.corpus.shards import Corpus
from upl_ray.corpus.true_labels import check_labels, folder_names
from upl_ray.errors import ConfigError


def corpus_of(tmp_path: Path, folders: list[str]) -> Corpus:
    """Two images in each folder, and one without."""
    names = [f"{folder}/{i}.jpg" for folder in folders for i in range(2)]
    write_files(tmp_path / "in", dict.fromkeys([*names, "x.jpg"], b""))
    return listed(tmp_path, tmp_path / "in", labels="folders")


@pytest.mark.parametrize(
    "folders",
    [
        ["train", "val"],
        ["test", "train", "val"],
        ["Train", "VALIDATION"],
        ["train2017", "val2017"],
        ["test", "train", "x"],
        ["labels", "test", "train"],
        ["eval", "train"],
        ["holdout", "train"],
        ["seg_pred", "seg_test", "seg_train"],
        ["cats_test", "cats_train"],
        ["test_small", "train_small"],
        ["testA", "testB", "trainA", "trainB"],
        ["01_train", "02_val", "03_test"],
        ["apple", "constrained", "test", "val"],
    ],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path: Path, folders: list[str]) -> None:
    corpus = corpus_of(tmp_path, folders)
    with pytest.raises(
        ConfigError,
        match=r"names of parts .* Let corpus\.uri lead to one .*/in/(?!constrained)[^)]*(?i:train|test|val)[^)]*\)",
    ):
        folder_names(corpus)


@pytest.mark.parametrize(
    "folders",
    [
        ["fold1", "fold2"],
        ["part_1", "part_2"],
        ["batch-0", "batch-1"],
        ["images_001", "images_002"],
        ["HAM_part_1", "HAM_part_2"],
        ["images"],  # Food-101
        ["JPEGImages", "SegmentationClass"],
        ["photos", "masks", "thumbs"],
        ["train"],
        ["PrivateTest", "PublicTest", "Training"],  # FER-2013
        ["images_background", "images_evaluation"],  # Omniglot
        ["extra", "train"],
        ["trn", "tst"],
        ["minival", "train"],
        ["gallery", "query"],
        ["shard_0", "shard_1"],
    ],
)
def test_numbered_parts_and_folders_of_all_images_are_no_classes(tmp_path: Path, folders: list[str]) -> None:
    one = next((f for f in folders if "train" in f.lower()), folders[0])
    with pytest.raises(ConfigError, match=rf"names of parts .* lead to one .*/in/{one}\)"):
        folder_names(corpus_of(tmp_path, folders))


@pytest.mark.parametrize("copy", ["cat - Copy", "cat - Kopie (2)", "cat (1)", "cat(1)", "cat copy", "cat copy 2"])
def test_copies_of_class_folders_are_refused(tmp_path: Path, copy: str) -> None:
    with pytest.raises(
        ConfigError, match=f"and '{re.escape(copy)}' under .* as a copy of another folder; put the images"
    ):
        folder_names(corpus_of(tmp_path, ["cat", "dog", copy]))


def test_partitions_of_a_table_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gives 'label=cat', 'label=dog' for .*: partitions of a table; rename the"):
        folder_names(corpus_of(tmp_path, ["label=cat", "label=dog"]))
    assert folder_names(corpus_of(tmp_path / "2", ["E=mc2", "dog"])) == ("E=mc2", "dog")


@pytest.mark.parametrize("part", ["test", "Validation", "unlabeled"])
def test_one_part_among_class_folders_is_refused(tmp_path: Path, part: str) -> None:
    with pytest.raises(ConfigError, match=f"and '{part}' under .* is called as a part of a data set; put it beside"):
        folder_names(corpus_of(tmp_path, ["cat", "dog", part]))


NUMBERS = [["0", "1"], ["001", "002", "010"], ["-1", "0"], ["0.0", "1.0"], ["class_0", "class_1"]]
NUMBERS += [["c0", "c1", "c2"], ["category_1", "category_2"], ["0_", "1_"], ["100APPLE", "101APPLE"]]
NUMBERS += [
    ["2023-05-01", "2023-05-02"],
    ["2020_01_05", "2021_12_31"],
    ["202301__", "202303_a"],
    ["100GOPRO", "101GOPRO"],
]


@pytest.mark.parametrize("folders", [*NUMBERS, ["n01440764", "n01443537"]])
def test_numbers_are_no_classes(tmp_path: Path, folders: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"gives '{folders[0]}', '{folders[1]}'.* numbers .* List the names"):
        folder_names(corpus_of(tmp_path, folders))


@pytest.mark.parametrize(
    "folders",
    [
        ["bus", "train"],
        ["2", "two"],
        ["fold", "part"],
        ["a_1", "b_2"],
        ["A320", "A330"],
        ["drawing", "photo", "picture"],
        ["toy train", "train", "tram"],
        ["mask", "no_mask"],
        ["picture_frame", "tray"],
        ["10", "2", "3", "jack", "queen"],
        ["art_gallery", "zoo"],
        ["invalid", "valid"],
        ["freight_train", "steam_train"],
        ["negative_test", "positive_test"],
        ["raw_beef", "raw_chicken"],
        ["extra_light", "extra_virgin"],
        ["photo_fake", "photo_real"],
        ["img_ai", "img_human"],
        ["100EUROS", "200EUROS"],
        ["coarse", "fine"],
        ["ground", "object"],
        ["photo", "scan"],
        ["labeled_bottle", "unlabeled_can"],
        ["cat_(1)", "dog"],
    ],
)
def test_other_folders_are_classes(tmp_path: Path, folders: list[str]) -> None:
    assert folder_names(corpus_of(tmp_path, folders)) == tuple(f.replace("_", " ") for f in folders)


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["001.Laysan_Albatross", "012.Cardinal"], ("Laysan Albatross", "Cardinal")),
        (["n02085620-Chihuahua", "n02085782-Japanese_spaniel"], ("Chihuahua", "Japanese spaniel")),
        (["1_cat", "2_dog", "3_a owl"], ("cat", "dog", "a owl")),
        (["1_cat", "2_dog", "4_bird"], ("cat", "dog", "bird")),  # a folder is empty or gone
        *(  # numbers that say something
            (names, tuple(name.replace("_", " ") for name in names))
            for names in (
                ["20_limit", "30_speed", "stop"],
                ["2012_BMW", "2013_Audi"],
                ["18_wheeler", "4_door_sedan", "motorbike"],
                ["5.56x45", "7.62x39"],
                ["A1", "A2", "A3"],
                ["100PIANO", "101DRUMS"],
                ["part1_bolt", "part2_bolt"],
                ["01_cat", "02_dog", "cat"],
            )
        ),
        (["00_cat", "01_dog", "background"], ("cat", "dog", "background")),
        (["(1) cat", "(2) dog"], ("cat", "dog")),
        (["001.2CV", "002.Beetle"], ("2CV", "Beetle")),
        (["7-cat", "9-dog"], ("7-cat", "9-dog")),
        (["2 seasons", "7 dwarfs"], ("2 seasons", "7 dwarfs")),
        (["01_cat", "01_dog"], ("01 cat", "01 dog")),
        (["1 star", "2 star"], ("1 star", "2 star")),
        (["2d", "3d"], ("2d", "3d")),
        (["001.cat", "dog"], ("001.cat", "dog")),
    ],
)
def test_numbers_before_names_only_order_them(tmp_path: Path, folders: list[str], names: tuple[str, ...]) -> None:
    corpus = corpus_of(tmp_path, folders)
    assert folder_names(corpus) == names
    assert check_labels(corpus, "folders", "corpus", names) == {"": 1}


def test_labels_that_are_no_class_are_counted(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ["cat", "catt", "dog", "7"])
    assert check_labels(corpus, "folders", "corpus", ("cat", "dog")) == {"catt": 2, "7": 2, "": 1}
    assert check_labels(corpus, "none", "corpus", ("cat", "dog")) == {}


def test_labels_that_are_partly_names_and_partly_numbers_are_refused(tmp_path: Path) -> None:
    """As of two Parquet files, of which one has lost the names of its class numbers."""
    with pytest.raises(ConfigError, match=r"corpus\.labels .* partly names, 'cat', and partly numbers, '1', which may"):
        check_labels(corpus_of(tmp_path, ["1", "cat", "dog"]), "folders", "corpus", ("cat", "dog"))


def test_numbers_are_names_where_classes_are_called_by_numbers(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ["0", "1.0", "2", "3"])
    assert check_labels(corpus, "folders", "corpus", ("1", "2", "3")) == {"0": 2, "": 1}


def test_numbers_from_1_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = corpus_of(tmp_path, ["1", "2", "3"])
    for labels in (corpus, corpus_of(tmp_path / "gaps", ["1.0", "2.0", "3.0"])):
        with pytest.raises(
            ConfigError, match=r"corpus\.labels .* up to 3 without 0, but classes are .* 0 to 2; subtract 1"
        ):
            check_labels(labels, "folders", "corpus", ("cat", "dog", "owl"))
    assert check_labels(corpus, "folders", "corpus", ("1", "2", "3")) == {"": 1}  # names, not numbers
    assert check_labels(corpus, "folders", "corpus", ("a", "b", "c", "d")) == {"": 1}
    assert check_labels(corpus, "folders", "corpus", ("a", "b")) == {"2": 2, "3": 2, "": 1}
    with pytest.raises(ConfigError, match=r"up to 3 without 0"):  # -1 is none, as many tables have it
        check_labels(corpus_of(tmp_path / "none", ["-1", "1", "2", "3"]), "folders", "corpus", ("cat", "dog", "owl"))
    assert "labels are numbers from 1 to 3, taken as counted from 0: 1 is 'b'" in caplog.text


def test_labels_none_of_which_is_a_class_are_refused(tmp_path: Path) -> None:
    words = r"no image has a label; call their column label or class or .*, in small letters"
    with pytest.raises(ConfigError, match=words):
        check_labels(corpus_of(tmp_path / "none", []), "column", "corpus", ("cat", "dog"))
    words = r"no label is a class name; the first label is 'x{36} \.\.\. x{36}', and the first"
    with pytest.raises(ConfigError, match=words):
        check_labels(corpus_of(tmp_path, ["x" * 200]), "folders", "corpus", ("cat", "dog"))
