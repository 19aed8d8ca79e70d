"""Masks, label images and thumbnails beside the photographs that they belong to are warned of."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import write_files, write_tar

from upl_ray.config.settings import Source
from upl_ray.corpus.find import find
from upl_ray.corpus.masks import masks_among
from upl_ray.corpus.shards import list_corpus
from upl_ray.storage.store import Store

# As data sets are published: photographs, and masks of them.
LAYOUTS = {
    "CUB": (["images/1.Jay/a_1.jpg"], ["segmentations/1.Jay/a_1.png"]),
    "VOC": (["JPEGImages/2007_1.jpg"], ["SegmentationClass/2007_1.png", "SegmentationObject/2007_1.png"]),
    "Oxford pets": (["images/cat_1.jpg"], ["annotations/trimaps/cat_1.png"]),
    "BUSI": (["benign/benign (1).png"], ["benign/benign (1)_mask.png", "benign/benign (1)_mask_1.png"]),
    "LGG": (["TCGA_CS/TCGA_1.tif", "TCGA_CS/2.tif"], ["TCGA_CS/TCGA_1_mask.tif", "TCGA_CS/2_mask.tif"]),
    "Carvana": (["train/a_01.jpg"], ["train_masks/a_01_mask.gif"]),
    "ISIC": (["ISIC_Training/ISIC_1.jpg"], ["ISIC_Training_GroundTruth/ISIC_1_segmentation.png"]),
    "ISIC's": (["ISIC/ISIC_1.jpg"], ["ISIC_GroundTruth/ISIC_1_segmentation.png"]),
    "nested": (["train/images/a.jpg", "val/images/b.jpg"], ["train/masks/a.png", "val/masks/b.png"]),
    "MVTec": (["test/broken/000.png", "train/good/000.png"], ["ground_truth/broken/000_mask.png"]),
    "nuclei": (["train/7/images/7.png", "train/8/images/8.png"], ["train/7/masks/ab.png", "train/7/masks/cd.png"]),
    "ClinicDB": (["Original/1.tif", "Original/2.tif"], ["Ground Truth/1.tif"]),
    "Montgomery": (["CXR_png/CHN_1_0.png"], ["masks/CHN_1_0_mask.png"]),
    "CamVid": (["train/01TP.png", "val/02TP.png"], ["train_labels/01TP_L.png", "val_labels/02TP_L.png"]),
    "Cityscapes": (["leftImg8bit/val/a_leftImg8bit.png"], ["gtFine/val/a_gtFine_color.png"]),
    "numbered": (["images/image_01.png", "new/02.png"], ["masks/mask_01.png", "new/mask_02.png"]),
    "plants": (["plant01_rgb.png"], ["plant01_label.png"]),
    "camel": (["img1.png"], ["img1Mask.png"]),
    "superpixels": (["ISIC_0.jpg"], ["ISIC_0_superpixels.png"]),
    "web site": (["cat.jpg", "b-2.jpg", "c.jpg"], ["cat-150x150.jpg", "cat-1024x768.jpg", "b-2-150x90.jpg"]),
    "in the middle": (["a.jpg", "x/b.jpg"], ["masks/a.png", "x/masks/b.png"]),
    "beside": (["a.jpg", "x/b.jpg"], ["a_seg.png", "x/b-thumbnail.jpg"]),
}
PHOTOGRAPHS = [
    ["mask/1.jpg", "no_mask/1.jpg"],  # classes of faces
    ["with_mask/1.jpg", "without_mask/1.jpg"],
    ["seg_train/sea/1.jpg", "seg_test/sea/2.jpg"],  # Intel's scenes: parts
    ["masks/1.jpg", "masks/2.jpg"],  # of a corpus of masks
    ["label/1.jpg", "price tag/1.jpg"],
    ["train/mask/1.jpg", "train/no_mask/1.jpg", "test/mask/1.jpg"],
    ["masks/1.jpg", "paintings/1.jpg", "photos/2.jpg"],  # in a museum
    ["mask.jpg", "masks.jpg", "s.jpg", "ask.jpg", "a-150x150.jpg", "rug.jpg", "rug-90x60.jpg"],
    ["train/1.jpg", "tea set/1.jpg", "mask/1.jpg"],  # toys
    ["ski/1.jpg", "ski_mask/1.jpg", "Ford/1.jpg", "Ford GT/1.jpg", "gas mask/1.jpg", "gas/1.jpg"],
    ["face.jpg", "face_mask.jpg", "shoe.jpg", "sun.jpg", "golf.jpg", "golf_gt.jpg"],  # in a shop
    ["a_1.jpg", "a_2.jpg", "b_label.jpg", "mask.jpg", "_mask.jpg"],
    ["images/a.jpg", "photos/a.jpg"],
]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("form", ["folder", "tar"])
def test_masks_beside_their_photographs_are_warned_of(
    name: str, form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photographs, masks = LAYOUTS[name]
    files = dict.fromkeys(sorted([*photographs, *masks]), b"x")
    assert sorted(masks_among(files)) == sorted(masks)
    address = tmp_path / ("in" if form == "folder" else "in.tar")
    write_files(address, files) if form == "folder" else write_tar(address, files)
    corpus = list_corpus(Store(f"{tmp_path}/run"), Source(uri=str(address)), 100)
    assert corpus.images == len(files)
    (message,) = caplog.messages
    assert f"{len(masks)} of the images under {address} are named like masks" in message
    assert f"such as {min(masks)};" in message


@pytest.mark.parametrize("files", PHOTOGRAPHS)
def test_what_only_sounds_like_a_mask_is_none(
    files: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_files(tmp_path, dict.fromkeys(files, b"x"))
    assert sorted(find(str(tmp_path)).files) == sorted(files)
    assert not caplog.messages


def test_a_pattern_leaves_masks_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_files(tmp_path, dict.fromkeys(("cat/images/a.jpg", "cat/masks/a.jpg", "dog/b.jpg", "dog/b_mask.jpg"), b"x"))
    assert set(find(f"{tmp_path}/*/images/*").files) == {"cat/images/a.jpg"}
    assert set(find(f"{tmp_path}/dog/*[!k].jpg").files) == {"b.jpg"}
    assert not caplog.messages
