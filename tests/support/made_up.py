"""Made-up sums of predictions: some images of each class, with a given mean and spread of confidence."""

from upl_ray.upl.tally import Tally


def tally(*classes: int, rejected: int = 0, confidence: float = 0.5, spread: float = 0.1) -> Tally:
    images = sum(classes)
    return Tally(
        images=images,
        rejected=rejected,
        classes={str(c): n for c, n in enumerate(classes) if n},
        confidence=confidence * images,
        confidence_squares=(confidence**2 + spread**2) * images,
    )
