"""Real photo files for the demo, and the check of what became of them."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw

THUMBNAIL_WIDTH = 320


def photo_name(number: int) -> str:
    """Every third one is a PNG."""
    return f"photo-{number}.{'png' if number % 3 == 0 else 'jpg'}"


def make_photo(folder: Path, number: int) -> None:
    """A landscape of two megapixels: sky, hills and a sun, no two alike."""
    chance = random.Random(number)
    width, height = chance.choice([(1800, 1200), (1600, 1200), (1200, 1500)])
    sky = Image.linear_gradient("L").resize((width, height))
    picture = Image.merge(
        "RGB", (sky, sky.point(lambda value: 120 + value // 3), sky.point(lambda value: 255 - value // 3))
    )
    draw = ImageDraw.Draw(picture)
    x, y, radius = chance.randrange(width), chance.randrange(height // 3), chance.randrange(80, 200)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 240, 180))
    for layer in range(4):
        top = height * (layer + 3) // 7
        ridge = [(step * width // 12, top - chance.randrange(height // 6)) for step in range(13)]
        draw.polygon([(0, height), *ridge, (width, height)], fill=(20, 150 - 30 * layer, 70 - 10 * layer))
    picture.save(folder / photo_name(number), compress_level=1, quality=88)


def wrong_thumbnails(media: Path, count: int) -> list[str]:
    """The photos among 1 … count without a thumbnail that can be decoded and has the right size and proportions."""
    return [photo_name(number) for number in range(1, count + 1) if not _is_right(media, photo_name(number))]


def _is_right(media: Path, name: str) -> bool:
    photo = media / "photos" / name
    thumbnail = media / "thumbnails" / photo.with_suffix(".jpg").name
    try:
        with Image.open(photo) as large, Image.open(thumbnail) as small:
            small.load()
            height = round(large.height * THUMBNAIL_WIDTH / large.width)
            return small.format == "JPEG" and small.size == (THUMBNAIL_WIDTH, height)
    except OSError:
        return False
