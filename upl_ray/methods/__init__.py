"""What UPL is compared with, on cached features (pure). A few-shot method is `FewShot -> Fitted`; see `few_shot.py`."""
