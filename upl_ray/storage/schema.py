"""Names and Arrow types of every table that steps exchange. `image_id` joins them; row order never means anything."""

from __future__ import annotations

import pyarrow as pa

# One shard of a corpus: what was found, in which version of its file, and where its bytes lie. In a file of its own
# (`offset` is null), in a tar archive (bytes `offset` to `offset + length`), or in row `offset` of a Parquet file.
LISTING = pa.schema(
    [
        ("image_id", pa.string()),
        ("version", pa.string()),
        ("label", pa.string()),  # what the source says about the true class; scores only
        ("file", pa.string()),  # relative to the shard's root, or a URI
        ("offset", pa.int64()),
        ("length", pa.int64()),
    ]
)

# Zero-shot of one shard: the fused probabilities' argmax, and each labeler's own, in the manifest's order of labelers.
PSEUDO_LABELS = pa.schema(
    [
        ("image_id", pa.string()),
        ("pseudo_label", pa.int32()),
        ("confidence", pa.float32()),
        ("backbone_labels", pa.list_(pa.int32())),
        ("backbone_confidences", pa.list_(pa.float32())),
        ("known", pa.float32()),  # share of probability on the classes while other words compete; null without these
    ]
)

# The top-K of every class, ordered by (pseudo_label, rank).
SELECTION = pa.schema(
    [
        ("image_id", pa.string()),
        ("pseudo_label", pa.int32()),
        ("confidence", pa.float32()),
        ("rank", pa.int32()),
        ("shard", pa.string()),  # whose listing says where the image lies
    ]
)

# What is known of each selected image once the run is over; for reports only.
SELECTED = pa.schema(
    [
        *SELECTION,
        ("backbone_labels", pa.list_(pa.int32())),  # what each labeler alone says
        ("labelers_agree", pa.float32()),  # share of the labelers that say the pseudo-label by themselves
        ("members_agree", pa.float32()),  # share of the members that say it in the end
        ("label", pa.int32()),  # the ensemble's
        ("true_label", pa.int32()),  # null if unknown
    ]
)

# Labeled images of each pair of true class and what the ensemble says, where there are any; for reports only.
CONFUSION = pa.schema(
    [("part", pa.string()), ("true", pa.int32()), ("predicted", pa.int32()), ("images", pa.int64())]  # corpus, scored
)

# What the exported ensemble says about one image.
PREDICTIONS = pa.schema(
    [
        ("image_id", pa.string()),
        ("label", pa.int32()),
        ("classname", pa.string()),
        ("confidence", pa.float32()),
        ("member_labels", pa.list_(pa.int32())),  # argmax of each member; their agreement needs no true labels
        ("even_label", pa.int32()),  # the ensemble's where no class is more frequent; differs if it knows class shares
        ("known", pa.float32()),  # by the target's zero-shot alone, see `PSEUDO_LABELS`
    ]
)

# What one method of a comparison says about one image.
VOTES = pa.schema([("image_id", pa.string()), ("label", pa.int32()), ("member_labels", pa.list_(pa.int32()))])

# Images that could not be read, and why.
REJECTED = pa.schema([("image_id", pa.string()), ("reason", pa.string())])

# Loss of each member after each epoch.
HISTORY = pa.schema([("member", pa.int32()), ("epoch", pa.int32()), ("lr", pa.float32()), ("loss", pa.float32())])


def features(dim: int) -> pa.Schema:
    """L2-normalised image features of one backbone, [dim] half-precision numbers an image."""
    return pa.schema([("image_id", pa.string()), ("image_features", pa.list_(pa.float16(), dim))])


def views(n_views: int, dim: int, n_classes: int | None = None) -> pa.Schema:
    """Features of the views of one selected image, [n_views * dim] row-major, and its class probabilities if given."""
    columns = [("image_id", pa.string()), ("view_features", pa.list_(pa.float16(), n_views * dim))]
    return pa.schema([*columns, *([("targets", pa.list_(pa.float32(), n_classes))] if n_classes else [])])
