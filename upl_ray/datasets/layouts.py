"""Where each data set keeps its images and its split, and what to fetch (CoOp, DATASETS.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

COOP = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


@dataclass(frozen=True)
class Layout:
    """One data set below the root of all: `<root>/<folder>/<images>/...` and `<root>/<folder>/<split>`."""

    title: str
    folder: str
    images: str  # empty: the folder itself, as its split names sub-folders
    split: str  # file beside the images
    fetch: str  # the archive that holds the images
    form: Literal["split", "variants", "folders"] = "split"


def _coop(title: str, folder: str, images: str, split: str, fetch: str) -> Layout:
    return Layout(title, folder, images, f"split_zhou_{split}.json", fetch)


# Keys are CoOp's names of the data sets.
LAYOUTS = {
    "imagenet": Layout(
        "ImageNet",
        "imagenet",
        "images",
        "classnames.txt",
        "the train and validation archives of ILSVRC 2012 (https://image-net.org), one folder a class in images/train "
        "and in images/val",
        "folders",
    ),
    "caltech101": _coop(
        "Caltech101", "caltech-101", "101_ObjectCategories", "Caltech101", "101_ObjectCategories.tar.gz"
    ),
    "dtd": _coop("DTD", "dtd", "images", "DescribableTextures", "dtd-r1.0.1.tar.gz"),
    "eurosat": _coop("EuroSAT", "eurosat", "2750", "EuroSAT", "EuroSAT.zip (the RGB images)"),
    "fgvc_aircraft": Layout(
        "FGVCAircraft",
        "fgvc_aircraft",
        "images",
        "variants.txt",
        "fgvc-aircraft-2013b.tar.gz, whose folder data/ becomes fgvc_aircraft/",
        "variants",
    ),
    "food101": _coop("Food101", "food-101", "images", "Food101", "food-101.tar.gz"),
    "oxford_flowers": _coop("Flowers102", "oxford_flowers", "jpg", "OxfordFlowers", "102flowers.tgz"),
    "oxford_pets": _coop("OxfordPets", "oxford_pets", "images", "OxfordPets", "images.tar.gz"),
    "sun397": _coop("SUN397", "sun397", "SUN397", "SUN397", "SUN397.tar.gz"),
    "stanford_cars": _coop("StanfordCars", "stanford_cars", "", "StanfordCars", "cars_train.tgz and cars_test.tgz"),
    "ucf101": _coop("UCF101", "ucf101", "UCF-101-midframes", "UCF101", "UCF-101-midframes.zip"),
}
