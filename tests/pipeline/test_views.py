"""The view step on single images."""

import pytest

from upl_ray.config.settings import Views
from upl_ray.errors import JobError
from upl_ray.pipeline.views import crop_views
from upl_ray.upl.clip_model import ClipModel


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize(
    ("data", "why"), [("missing file", "missing file"), (b"", "empty file"), (b"x", "not an image")]
)
def test_a_selected_image_that_cannot_be_read_any_more_stops_the_job_in_a_sentence(
    small_clip: ClipModel, data: bytes | str, why: str, count: int
) -> None:
    with pytest.raises(
        JobError, match=rf"'a\.jpg' could be read.*\({why}.*put it back or take it out.*run the job again"
    ):
        crop_views(data, "a.jpg", small_clip.spec, Views(count=count))
