"""Write a commented configuration for images that it has looked at.

usage: upl-ray init IMAGES [--out my.yaml]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from upl_ray.config.redact import reject_secrets
from upl_ray.corpus.archives import class_names, label_column
from upl_ray.corpus.find import Found, find, sub_folder
from upl_ray.corpus.manifests import names_images
from upl_ray.corpus.true_labels import class_folders
from upl_ray.errors import ConfigError
from upl_ray.storage.store import absolute, open_filesystem, open_parquet

SHOWN = 3  # class names in a comment
NAMES_FILE = "classes.txt"


def main(args: list[str]) -> int:
    """Exit status: 0 when the file is written; 2 when there are no images, or the file is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", help="a folder, s3://bucket/prefix, tar or Parquet files, or a list of images")
    parser.add_argument("--out", default="my.yaml", help="the file to write (default: my.yaml)")
    options = parser.parse_args(reject_secrets(args))
    out = Path(options.out)
    if out.exists():
        raise ConfigError(f"{options.out!r} is there already; name another file with --out, or remove it.")
    found = find(absolute(options.images))
    summary, labels, classnames, comment = look_at(found)
    try:
        out.write_text(configuration(options.images, summary, labels, classnames, comment), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{options.out!r} cannot be written ({error.strerror}); name another file.") from None
    print(f"{options.images}: {summary}.")
    if found.left_out.counts:
        print(f"Left out: {found.left_out}.")
    print(f"Written: {out}. Look at it{'' if classnames == 'folders' else f', write {NAMES_FILE}'}, then:\n")
    print(f"    upl-ray run {out}")
    return 0


def look_at(found: Found) -> tuple[str, str, str, str]:
    """Images in a few words, the rule for true labels, where class names come from, and a comment on these."""
    files = f"{len(found.files):,} {found.form} file{'s' if len(found.files) > 1 else ''}"
    if found.form == "images":
        folders = Counter(folder for file in found.files if (folder := sub_folder(file)))
        summary = f"{len(found.files):,} images"
        if not folders:
            return summary, "none", NAMES_FILE, "one name a line"
        return f"{summary} in {len(folders):,} folders", *_classes(list(folders), found.root, "folders")
    if found.form == "parquet" and not names_images(found):
        fs, root = open_filesystem(found.root)
        rows = 0
        for file in found.files:
            with fs.open_input_file(f"{root}/{file}") as source:
                parquet = open_parquet(source, file)
                rows, columns = rows + parquet.metadata.num_rows, parquet.schema_arrow
        column = label_column(columns)
        summary = f"{rows:,} images in {files}"
        if column is None:
            return summary, "none", NAMES_FILE, "one name a line"
        names = class_names(columns, column)
        if names:
            return summary, *_classes(names, found.root, "column")
        return summary, "column", NAMES_FILE, f"one name a line; or `folders`: the labels in column {column}"
    kind = "column: .cls or .json of a sample" if found.form == "tar" else "column: the one called label"
    return files, "none", NAMES_FILE, f"one name a line. True labels, if there are any: labels: {kind}"


def _classes(names: list[str], root: str, rule: str) -> tuple[str, str, str]:
    try:
        classes = class_folders(names, [root])
    except ConfigError as error:
        return "none", NAMES_FILE, f"one name a line. {error}"
    shown = ", ".join(classes[:SHOWN]) + (", ..." if len(classes) > SHOWN else "")
    present = ", as far as images have them" if rule == "column" else ""  # a column lists its names, no image is read
    return rule, "folders", f"{len(classes):,} names{present}: {shown}"


def configuration(uri: str, summary: str, labels: str, classnames: str, comment: str) -> str:
    """The text of the YAML file."""
    scores = "they score the results, and nothing is learned from them" if labels != "none" else "none to score with"
    return f"""\
# {uri}: {summary}. All fields: docs/configuration.md; `upl-ray run --help`.
corpus:
  uri: {_text(uri)}
  labels: {labels}        # true labels: {scores}
classnames: {classnames}        # {" ".join(comment.split())}
template: "a photo of a {{}}."        # say what kind of images they are: "a satellite photo of {{}}."
backbones: [RN50/openai, ViT-B-16/openai]        # open_clip models; the first is the one that prompts are learned for
variants: [upl*]        # [upl*, refined] where classes may be uneven or absent; the first is exported
storage_path: upl-run        # results; or s3://bucket/prefix, which a cluster needs
# label: {{corrections: corrections.csv}}        # what you have corrected in the report of a run before
"""


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
