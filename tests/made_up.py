"""Made-up figures of predictions: so many images of each class, all as confident as they were told to be."""

from upl_ray.figures import Figures


def figures(*classes: int, rejected: int = 0, confidence: float = 0.5, spread: float = 0.1) -> Figures:
    """Figures of images whose confidence has this mean and this spread."""
    images = sum(classes)
    return {
        "images": images,
        "rejected": rejected,
        "classes": {str(c): n for c, n in enumerate(classes) if n},
        "confidence": confidence * images,
        "confidence_squares": (confidence**2 + spread**2) * images,
        "agreement": 0.0,
    }
