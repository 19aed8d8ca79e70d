"""Why an image is rejected: every reason that may stand in `rejected.parquet`, and the limits behind them.

A reason is about an image's own bytes, and stays until they change. Anything about access to them (no permission, a
storage that does not answer) is no reason but stops the job.
"""

from __future__ import annotations

from PIL import UnidentifiedImageError

from upl_ray.errors import first_line

MAX_PIXELS = 178_956_970  # twice PIL's warning limit: the size at which PIL itself refuses, as a decompression bomb
MAX_ASPECT = 300  # long by short side: at 448 pixels such a strip is resized to 60 million pixels before it is cropped
MAX_SCANS = 100  # of a JPEG file; encoders write 10. Each takes as long to decode as the whole image, in a few bytes
LONGEST_REASON = 200  # characters of PIL's text

# Of the file.
MISSING = "missing file"
NO_NAME = "a name that S3 clients cannot open"  # with an empty part, `.` or `..` between slashes
NO_FILE = "not a file"  # a folder, or a pipe, which would be waited for
EMPTY = "empty file"
# Of a member of an archive.
SPARSE_MEMBER = "sparse member of a tar archive"  # it may claim a million times its bytes
LINK_MEMBER = "link in a tar archive"  # it may lead anywhere
CUT_ARCHIVE = "truncated archive"
MISSING_ROW = "missing row"
NO_BYTES = "no bytes in this row"


class Rejected(ValueError):
    """An image that cannot be used; the text is the reason."""


def too_many_bytes(most: int) -> str:
    """A file that is larger than any image of the allowed size."""
    return f"more than {most} bytes"


def too_many_pixels(most: int) -> str:
    """An image that is larger than `label.max_pixels`."""
    return f"more than {most} pixels"


def too_many_scans() -> str:
    """A JPEG file that takes the time of more than a hundred images."""
    return f"more than {MAX_SCANS} scans"


def too_deep(mode: str, lowest: float, highest: float) -> str:
    """An image of whose range RGB would show one end alone, white or black; NaN if one value is."""
    return f"not 8 bits a channel: mode {mode}, values from {lowest:g} to {highest:g}"


def too_dark(mode: str, below: int) -> str:
    """An image of 16 bits a channel, of which RGB would keep the upper 8, which are not used."""
    return f"not 8 bits a channel: mode {mode}, 16 bits, all values below {below}"


def scrambled(mode: str, layout: str) -> str:
    """A TIFF whose values PIL takes for others."""
    return f"not 8 bits a channel: mode {mode}, {layout}"


def too_long(width: int, height: int) -> str:
    """A strip whose sides differ too much."""
    return f"its aspect ratio is too long: {width} x {height} pixels"


def not_opened(error: BaseException) -> str:
    """Bytes that PIL does not open."""
    kind = "not an image" if isinstance(error, UnidentifiedImageError) else "damaged image"
    return f"{kind}: {_text(error)}"


def not_decoded(error: BaseException) -> str:
    """An image that PIL opens and cannot load."""
    return f"truncated or damaged image: {_text(error)}"


def not_converted(mode: str, error: BaseException) -> str:
    """An image that PIL cannot resize or convert to RGB."""
    return f"unsupported mode {mode}: {_text(error)}"


def _text(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no decoder recognises it"  # PIL's own text holds an object's address
    return first_line(error)[:LONGEST_REASON]
