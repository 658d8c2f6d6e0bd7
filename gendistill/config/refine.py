"""Options of refinement, and of WMDD, which is the same from other starts."""

from dataclasses import dataclass
from typing import Literal

from gendistill.config.base import Precision, Sizes, at_least, check_sizes, in_unit, require

WmddStart = Literal["noise", "real"]
FeatureLoss = Literal["squared", "published", "released"]
BatchNormLoss = Literal["normalised", "published"]
BarycenterWeights = Literal["fixed", "free"]
BarycenterSolver = Literal["exact", "sinkhorn"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What refined images descend on, and how far they may go (WMDD, arXiv 2311.18531).

    Attributes:
        steps: Optimiser steps on the images; 0 stops after the selection.
        learning_rate: Peak rate of Adam(0.5, 0.9) on pixels in [-1, 1] (or on latents of about unit std), decayed along
            a cosine.
        feature_weight: Weight of the distance to an image's own atom.
        batch_norm_weight: Weight of the per-class batch-norm matching; 0 needs no batch norm in the teacher.
        cross_entropy_weight: Weight of the teacher's cross-entropy.
        feature_loss: ``squared`` distances in class variances, ``published`` ones in raw features, or ``released``:
            their unsquared norm over the batch.
        batch_norm_loss: ``normalised`` by layer, so that a weight carries over between networks, or ``published``.
        pixel_weight: Weight of pixels beside teacher features in the ground cost of barycenter and assignment. On
            digits 3 was best; on photographs less, the less the more images a class has.
        weights: Barycenter weights: ``fixed`` at 1/IPC, or ``free``: each image weighs what its atom stands for.
        solver: ``exact`` plans, or entropic ones by ``sinkhorn``.
        trust_region: Largest change of a pixel, in units of the range [-1, 1]; 2 is no bound.
        delta_size: Side at which the change is optimised, then enlarged; null for the image's own; less is smoother.
        blend_every: Every so many steps the change is shrunk by ``blend``; 0 never.
        blend: What is left of the change then.
        min_crop: Least share of an image's area that a step's random crop shows; 1 shows all.
        flip: Mirror what a step shows at random; wrong for digits, right for most photographs.
        roll: Largest random cyclic shift of what a step shows, in pixels.
        batch_size: Images in the networks at once, whole classes together; a class of more goes in pieces, at one more
            forward pass. It does not change what is made, but rounding; except with feature_loss released, whose
            distance is of all images that are refined together.
        mixed_precision: ``auto`` is bf16 on a GPU or CPU that computes in it (half the time; images differ by a few of
            255 levels), fp32 elsewhere.
    """

    steps: int = 200
    learning_rate: float = 0.03
    feature_weight: float = 1.0
    batch_norm_weight: float = 1.0
    cross_entropy_weight: float = 0.1
    feature_loss: FeatureLoss = "squared"
    batch_norm_loss: BatchNormLoss = "normalised"
    pixel_weight: float = 0.3
    weights: BarycenterWeights = "fixed"
    solver: BarycenterSolver = "exact"
    trust_region: float = 1.0
    delta_size: int | None = None
    blend_every: int = 0
    blend: float = 0.5
    min_crop: float = 1.0
    flip: bool = False
    roll: int = 0
    batch_size: int = 128
    mixed_precision: Precision = "auto"

    def _check(self, section: str) -> None:
        at_least(self, section, 0, "steps", "learning_rate", "trust_region", "pixel_weight", "blend_every", "roll")
        at_least(self, section, 0, "feature_weight", "batch_norm_weight", "cross_entropy_weight")
        at_least(self, section, 1, "batch_size")
        in_unit(self, section, "blend", "min_crop")
        weights = ("feature_weight", "batch_norm_weight", "cross_entropy_weight")
        for name in ("pixel_weight", *weights):
            require(getattr(self, name) <= 1e6, f"{section}.{name}", getattr(self, name), "a number of at most 1e6")
        require(self.trust_region <= 2, f"{section}.trust_region", self.trust_region, "at most 2, which is no bound")
        if self.steps:
            moving = "more than 0: nothing would move the images. For the selection alone set steps 0"
            for name in ("learning_rate", "trust_region"):
                require(getattr(self, name) > 0, f"{section}.{name}", getattr(self, name), moving)
            require(any(getattr(self, name) for name in weights), f"{section}.{', '.join(weights)}", 0, f"one {moving}")
        require(self.min_crop > 0, f"{section}.min_crop", self.min_crop, "more than 0")
        size = self.delta_size
        require(size is None or size >= 1, f"{section}.delta_size", size, "null or at least 1")
        require(
            self.blend_every > 0 or self.blend == 0.5, f"{section}.blend", self.blend, "left alone without blend_every"
        )
        require(
            self.weights == "fixed" or self.solver == "exact",
            f"{section}.weights",
            self.weights,
            "fixed with solver sinkhorn",
        )


@dataclass(frozen=True, kw_only=True)
class WmddConfig(ObjectiveConfig):
    """The WMDD back-end (arXiv 2311.18531): the refiner's optimisation, from noise or from random real images.

    Attributes:
        start: ``noise``, or ``real``: random real images.
    """

    start: WmddStart = "noise"
    trust_region: float = 2.0
    pixel_weight: float = 0.0

    def __post_init__(self) -> None:
        self._check("distill.wmdd")


@dataclass(frozen=True, kw_only=True)
class RefineConfig(ObjectiveConfig):
    """Selection by barycenter assignment, then barycenter and batch-norm refinement of what was chosen.

    Attributes:
        ipc: Images per class of the sets to write: a number, or a list such as [1,5,10].
        select: Choose from the set by assignment; false takes its first images as they are.
        gate: Keep a refinement only where it helps: W2 of its class falls, and where ``held_out`` is given, that
            network's cross-entropy on the image does not rise.
        pack: Factor of multi-formation: pack x pack images, each refined by itself, shrunk into every stored one.
        latent_trust_region: With a generator, largest change of a latent, in units of about its std; the bound of
            trust_region on pixels holds besides.
        patches: Crops tried of every image of the set, the whole one among them; the one that the teachers are surest
            of takes its place before the selection. 1 keeps whole images.
        min_patch: Least share of an image's area that such a crop has.
        match_iterations: Iterations of distribution matching (method dm of distill, with its presets) that carry the
            refined images on; 0 is none. What 100 gain is in docs/refinement.md.
    """

    ipc: Sizes = (1, 5, 10)
    select: bool = True
    gate: bool = False
    pack: int = 1
    latent_trust_region: float = 0.5
    patches: int = 1
    min_patch: float = 0.25
    match_iterations: int = 0

    def __post_init__(self) -> None:
        check_sizes(self, "refine")
        self._check("refine")
        at_least(self, "refine", 1, "pack", "patches")
        at_least(self, "refine", 0, "latent_trust_region", "match_iterations")
        require(0 < self.min_patch <= 1, "refine.min_patch", self.min_patch, "a share above 0, at most 1")
        alike = self.patches > 1 and self.min_patch == 1
        unread = self.patches == 1 and self.min_patch not in (0.25, 1)
        require(not unread, "refine.min_patch", self.min_patch, "left alone with patches 1, which cuts nothing")
        require(not alike, "refine.patches", self.patches, "1 with min_patch 1, where every crop is the whole image")
        require(self.pack == 1 or self.weights == "fixed", "refine.weights", self.weights, "fixed with pack above 1")
        require(not self.gate or self.steps > 0, "refine.gate", self.gate, "false with steps 0, which refine nothing")
        if self.match_iterations:
            require(self.weights == "fixed", "refine.weights", self.weights, "fixed with match_iterations")
            require(not self.gate, "refine.gate", self.gate, "false with match_iterations, which moves every image")
