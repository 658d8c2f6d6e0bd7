"""How the image files of a set are coded. No torch in here."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from gendistill.config.base import Flat, Options, Range, require

Quality = Annotated[int, Range(1, 100), Flat("image_quality")]


@dataclass(frozen=True, kw_only=True)
class Webp(Options):
    """Lossy WebP files.

    Attributes:
        quality: Quality of a lossy format on Pillow's scale, which is another in each format: 100 is the best.
    """

    kind: ClassVar[str | None] = "webp"

    quality: Quality = 90


@dataclass(frozen=True, kw_only=True)
class Jpeg(Options):
    """JPEG files.

    Attributes:
        quality: Quality of a lossy format on Pillow's scale, which is another in each format: 100 is the best.
    """

    kind: ClassVar[str | None] = "jpeg"

    quality: Quality = 90


@dataclass(frozen=True, kw_only=True)
class Avif(Options):
    """AVIF files, which need Pillow 11.3 or later.

    Attributes:
        quality: Quality of a lossy format on Pillow's scale, which is another in each format: 100 is the best.
    """

    kind: ClassVar[str | None] = "avif"

    quality: Quality = 90


Lossless = Literal["png", "webp_lossless"]
LossyFormat = Webp | Jpeg | Avif
ImageFormat = Lossless | LossyFormat


def format_of_steps(image_format: ImageFormat, compression_aware: bool, section: str) -> LossyFormat | None:
    """The format as which every step codes the images that it optimises; None where it takes them as they are.

    Raises:
        ConfigError: ``compression_aware`` with a lossless format.
    """
    if not compression_aware:
        return None
    text = f"false with image_format {image_format}, which keeps every pixel; or webp, jpeg or avif"
    require(not isinstance(image_format, str), f"{section}.compression_aware", True, text)
    assert not isinstance(image_format, str)
    return image_format
