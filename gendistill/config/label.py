"""Options of soft labels."""

from dataclasses import dataclass
from typing import Literal

from gendistill.config.base import at_least, require

LabelMode = Literal["per_image", "per_view", "online"]


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Soft labels by a teacher.

    Attributes:
        mode: ``per_image`` stores one mean over views an image; ``per_view`` one for every view of every batch, with
            the seed that replays the views; ``online`` nothing but that seed: the teacher labels while training.
        temperature: Divides the teacher's logits; students train at the same one.
        top_k: Keep only the most probable classes of each label (null: all); the rest shares what is left evenly.
        views: per_image: views averaged; 1 is the image itself as it is.
        steps: per_view: batches to label, which is how long a training can be.
        batch_size: per_view, online: images a batch.
        min_crop: Least share of an image's area that a random crop keeps; 1 does not crop.
        flip: Mirror views at random; wrong for digits, right for most photographs.
        cutmix: per_view, online: alpha of CutMix's Beta(alpha, alpha); 0 does not mix.
    """

    mode: LabelMode = "per_image"
    temperature: float = 4.0
    top_k: int | None = None
    views: int = 1
    steps: int = 200
    batch_size: int = 64
    min_crop: float = 1.0
    flip: bool = False
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        section = "label"
        at_least(self, section, 1, "views", "steps", "batch_size")
        at_least(self, section, 0, "cutmix")
        require(self.temperature > 0, f"{section}.temperature", self.temperature, "more than 0")
        require(self.top_k is None or self.top_k >= 1, f"{section}.top_k", self.top_k, "null or at least 1")
        require(0 < self.min_crop <= 1, f"{section}.min_crop", self.min_crop, "a share above 0, at most 1")
        per_image = self.mode == "per_image"
        require(
            not (per_image and self.cutmix),
            f"{section}.cutmix",
            self.cutmix,
            "0 with mode per_image, whose labels belong to one image",
        )
        same = per_image and self.views > 1 and self.min_crop == 1 and not self.flip
        require(not same, f"{section}.views", self.views, "1 where neither min_crop nor flip makes views differ")
        require(per_image or self.views == 1, f"{section}.views", self.views, f"1 with mode {self.mode}")
        require(
            self.mode != "online" or self.top_k is None,
            f"{section}.top_k",
            self.top_k,
            "null with mode online, which stores nothing",
        )
