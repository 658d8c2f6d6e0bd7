"""Options of the real images."""

from dataclasses import dataclass
from pathlib import Path

from gendistill.config.base import require


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The real images.

    Attributes:
        name: ``digits`` (built in), a folder of class folders, a folder of parquet files, or a Hub id.
        image_size: Side of the square images in pixels; null keeps the size that the images share.
        test_fraction: Share of each class held out as test split when the source has none.
        validation_fraction: Share of each class carved from train, kept from every training and from the test.
        split_seed: Seed of those two splits; apart from the run's seed, so that runs share their splits.
        max_per_class: Keep at most this many training images of a class (null: all); for quick tries.
        revision: Branch, tag or commit of a Hub id.
        licence: Licence of the images, as the Hub spells it, for the cards of sets made from them; null takes what a
            Hub dataset says of itself.
    """

    name: str = "digits"
    image_size: int | None = None
    test_fraction: float = 0.25
    validation_fraction: float = 0.1
    split_seed: int = 0
    max_per_class: int | None = None
    revision: str | None = None
    licence: str | None = None

    @property
    def folder(self) -> Path | None:
        """The name as a folder, where it is one."""
        path = Path(self.name).expanduser()
        return path if self.name != "digits" and path.is_dir() else None

    def __post_init__(self) -> None:
        require(bool(self.name), "data.name", self.name, "digits, a folder or a Hub id")
        size = self.image_size
        require(size is None or size >= 4, "data.image_size", size, "null or at least 4 pixels")
        limit = self.max_per_class
        require(limit is None or limit >= 4, "data.max_per_class", limit, "null or at least 4")
        for name in ("test_fraction", "validation_fraction"):
            value = getattr(self, name)
            require(0 < value < 0.9, f"data.{name}", value, "a share between 0 and 0.9")
