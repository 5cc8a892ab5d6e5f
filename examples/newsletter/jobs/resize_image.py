"""Makes the thumbnail of one photo. A plain `def perform`: it has a worker process to itself, so it may use the CPU."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import Field

from cluster import Fail, Job


class ResizeImageJob(Job):
    """Table resize_image_jobs. `file_name` is relative to `photos` in MEDIA_DIR; the result goes to `thumbnails`."""

    file_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.(jpg|png)$")]
    width: Annotated[int, Field(gt=0, le=2000)] = 320

    max_concurrency = None
    timeout = timedelta(minutes=1)

    def perform(self) -> Fail | None:
        media = Path(os.environ.get("MEDIA_DIR", "media"))
        photo = media / "photos" / self.file_name
        thumbnail = media / "thumbnails" / photo.with_suffix(".jpg").name
        if not photo.exists():
            return Fail(f"there is no photo {self.file_name}")
        # Written beside its place and renamed: a job that is killed leaves no half a picture, and may run again.
        unfinished = thumbnail.with_suffix(f".{self.id}")
        with Image.open(photo) as picture:
            size = (self.width, round(picture.height * self.width / picture.width))
            picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(unfinished, "JPEG", quality=85)
        unfinished.rename(thumbnail)
        return None
