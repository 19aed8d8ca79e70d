"""The 11 data sets of the paper, read from the folders that the few-shot literature uses (CoOp's DATASETS.md)."""
