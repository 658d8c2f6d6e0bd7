"""Options of refinement, and of WMDD, the same optimisation from other starts."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from gendistill.config.base import (
    Batch,
    Count,
    Distance,
    Flat,
    NonNegative,
    Options,
    PerClass,
    PositiveShare,
    Precision,
    Range,
    Share,
    Side,
    Sizes,
    Tiles,
    Whole,
    as_tuple,
    check_sizes,
    require,
)
from gendistill.config.flat import registered_options, to_dict
from gendistill.config.images import ImageFormat, LossyFormat, format_of_steps
from gendistill.errors import ConfigError
from gendistill.registry import REFINERS

WmddStart = Literal["class_noise", "noise", "real"]
FeatureLoss = Literal["squared", "published", "released"]
BatchNormLoss = Literal["normalised", "published"]
BarycenterWeights = Literal["fixed", "free"]
BarycenterSolver = Literal["exact", "sinkhorn"]
PatchPlaces = Literal["random", "activation"]
Weight = Annotated[float, Range(0, 1e6)]
Bound = Annotated[float, Range(0, 2)]


@dataclass(frozen=True, kw_only=True)
class Blend(Options):
    """Repeated reduction of the change (FADRM, arXiv 2506.24125).

    Attributes:
        every: Steps between two reductions of the change; 0 is none.
        factor: Factor of the change at each reduction.
    """

    section: ClassVar[str] = "refine"
    kind: ClassVar[str | None] = "blend_every above 0"

    every: Annotated[Count, Flat("blend_every", off=0)]
    factor: Annotated[Share, Flat("blend")] = 0.5


@dataclass(frozen=True, kw_only=True)
class Patches(Options):
    """Replacement of every image of the set by its best crop, before the selection.

    Attributes:
        count: Crops of every image of the set, including the whole image; the one on which the teachers are most
            confident replaces the image before the selection. 1 keeps whole images.
        smallest: Smallest share of an image's area in such a crop.
        places: ``random`` squares, or ``activation``: squares of evenly spread sides, each where the teachers' class
            activation map is largest.
    """

    section: ClassVar[str] = "refine"
    kind: ClassVar[str | None] = "patches above 1"

    count: Annotated[int, Range(2, 65536), Flat("patches", off=1)]
    smallest: Annotated[float, Range(0, 1, open_low=True, open_high=True), Flat("min_patch")] = 0.25
    places: Annotated[PatchPlaces, Flat("patch_places")] = "random"


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Options):
    """The objective of refinement and its bounds (WMDD, arXiv 2311.18531).

    Attributes:
        steps: Optimiser steps on the images; 0 stops after the selection.
        learning_rate: Peak learning rate of Adam(0.5, 0.9) on pixels in [-1, 1] (or on latents with std about 1), with
            cosine decay.
        feature_weight: Weight of the distance between an image and its atom.
        batch_norm_weight: Weight of the per-class batch-norm matching; with 0 the teacher needs no batch norm.
        cross_entropy_weight: Weight of the cross-entropy of the teacher.
        feature_loss: ``squared`` distances in class variances, ``published`` ones in raw features, or ``released``:
            their unsquared norm over the batch.
        batch_norm_loss: ``normalised`` by layer, so that one weight suits all networks, or ``published``.
        pixel_weight: Weight of pixels, in addition to teacher features, in the cost of barycenter and assignment. On
            digits 3 was best; on photographs less, and less for more images per class.
        weights: Barycenter weights: ``fixed`` at 1/IPC, or ``free``: each image has the weight of its atom.
        solver: ``exact`` plans, or entropic ones by ``sinkhorn``.
        trust_region: Largest change of a pixel, in units of the range [-1, 1]; 2 is no limit.
        delta_size: Side at which the change is optimised, before it is enlarged; null for the side of the image; a
            smaller one gives smoother changes.
        blend: Reduces the change at intervals.
        min_crop: Smallest share of an image's area in the random crop of a step; 1 is the whole image.
        flip: Mirror the images of a step at random; wrong for digits, right for most photographs.
        roll: Largest random cyclic shift of the images of a step, in pixels.
        batch_size: Images in the networks at once, in whole classes; a larger class is divided into micro-batches, with
            one more forward pass. The result is the same except for rounding, but not with feature_loss released, whose
            distance is over all images that are refined together.
        mixed_precision: ``auto`` is bf16 on a GPU or CPU that computes in it (half the time; images differ by a few of
            255 levels), fp32 elsewhere.
    """

    steps: Whole = 200
    learning_rate: NonNegative = 0.03
    feature_weight: Weight = 1.0
    batch_norm_weight: Weight = 1.0
    cross_entropy_weight: Weight = 0.1
    feature_loss: FeatureLoss = "squared"
    batch_norm_loss: BatchNormLoss = "normalised"
    pixel_weight: Weight = 0.3
    weights: BarycenterWeights = "fixed"
    solver: BarycenterSolver = "exact"
    trust_region: Bound = 1.0
    delta_size: Side | None = None
    blend: Blend | None = None
    min_crop: PositiveShare = 1.0
    flip: bool = False
    roll: Distance = 0
    batch_size: Batch = 128
    mixed_precision: Precision = "auto"

    @property
    def blending(self) -> tuple[int, float]:
        """After how many steps the change is shrunk, 0 for never, and to what."""
        return (self.blend.every, self.blend.factor) if self.blend else (0, 1.0)

    def check(self) -> None:
        super().check()
        section, weights = self.section, ("feature_weight", "batch_norm_weight", "cross_entropy_weight")
        if self.steps:
            moving = "more than 0: nothing would move the images. For the selection alone set steps 0"
            for name in ("learning_rate", "trust_region"):
                require(getattr(self, name) > 0, f"{section}.{name}", getattr(self, name), moving)
            require(any(getattr(self, name) for name in weights), f"{section}.{', '.join(weights)}", 0, f"one {moving}")
        exact = self.weights == "fixed" or self.solver == "exact"
        require(exact, f"{section}.weights", self.weights, "fixed with solver sinkhorn")


@dataclass(frozen=True, kw_only=True)
class WmddConfig(ObjectiveConfig):
    """Method wmdd (arXiv 2311.18531): the optimisation of refinement, from noise or from random real images.

    Attributes:
        start: ``class_noise``, with the mean and standard deviation that each pixel has in the class; ``noise``, with
            the same for all pixels, as published, which leaves a grey background where the class has a black one; or
            ``real``: random real images.
    """

    section: ClassVar[str] = "distill.wmdd"

    start: WmddStart = "class_noise"
    trust_region: Bound = 2.0


@dataclass(frozen=True, kw_only=True)
class RefineConfig(ObjectiveConfig):
    """Selection by barycenter assignment, then barycenter and batch-norm refinement of the selected images.

    Attributes:
        ipc: Images per class of the sets to write: a number, or a list such as [1,5,10].
        select: Select images of the set by assignment; ``easy`` takes those of each class with the smallest error of
            the teachers, ``hard`` those with the largest that they still classify correctly; false takes the first
            ones.
        refiner: Refiner of the selected images: ``barycenter``, one of your own, or a list of them, applied in this
            order.
        options: Options of a refiner of your own, by name.
        gate: Keep a refinement only if it helps: W2 of its class falls, and the cross-entropy of the image in the
            network ``held_out``, if there is one, does not rise.
        pack: Factor of multi-formation: pack x pack images, each refined separately, are shrunk into every stored
            image.
        latent_trust_region: With a generator, largest change of a latent, in units of about its std; trust_region still
            limits the pixels.
        patches: Replace every image of the set by the best of several crops; null keeps whole images.
        match_iterations: Iterations of distribution matching after refinement (method dm of distill, with few real
            images in a step); 0 is none. docs/results.md has the gain of 100.
        match_from: Fewest images of a class, decoded if they are packed, of a set that is matched; at 1 matching gains
            nothing.
        image_format: Format of the image files: ``png`` or ``webp_lossless``, which keep every pixel, or ``webp``,
            ``jpeg`` or ``avif`` with an image_quality; the pixels of such a set are the decoded ones.
        compression_aware: Code and decode the images in every step, so that what is optimised is what a lossy
            image_format stores. With pack above 1 only matching does so: refinement moves whole images.
    """

    section: ClassVar[str] = "refine"

    ipc: Sizes = (1, 5, 10)
    select: bool | Literal["easy", "hard"] = True
    refiner: str | tuple[str, ...] = "barycenter"
    options: dict[str, Any] | None = None
    gate: bool = False
    pack: Tiles = 1
    latent_trust_region: NonNegative = 0.5
    patches: Patches | None = None
    match_iterations: Whole = 0
    match_from: PerClass = 5
    image_format: ImageFormat = "png"
    compression_aware: bool = False

    def is_matched(self, ipc: int) -> bool:
        """Whether matching follows the refinement of a set of ``ipc`` images a class."""
        return self.match_iterations > 0 and ipc * self.pack**2 >= self.match_from

    @property
    def step_format(self) -> LossyFormat | None:
        """The format as which steps code the images, where they do."""
        return format_of_steps(self.image_format, self.compression_aware, self.section)

    def check(self) -> None:
        super().check()
        check_sizes(self.ipc, "refine.ipc")
        names = as_tuple(self.refiner)
        require(len(set(names)) == len(names) > 0, "refine.refiner", self.refiner, "a refiner, or several, each once")
        for name in names:
            if name not in REFINERS:
                raise ConfigError(f"refine.{REFINERS.unknown(name)}")
        for own in refiner_options(self).values():
            object.__setattr__(self, "options", to_dict(own))
        atoms = isinstance(self.select, bool) or self.weights == "fixed"
        require(atoms, "refine.weights", self.weights, f"fixed with select {self.select}, which has no atoms")
        require(self.pack == 1 or self.weights == "fixed", "refine.weights", self.weights, "fixed with pack above 1")
        require(not self.gate or self.steps > 0, "refine.gate", self.gate, "false with steps 0, which refine nothing")
        usual = self.match_from == type(self).match_from
        require(usual or self.match_iterations > 0, "refine.match_from", self.match_from, "5 without match_iterations")
        if self.match_iterations:
            require(self.weights == "fixed", "refine.weights", self.weights, "fixed with match_iterations")
            require(not self.gate, "refine.gate", self.gate, "false with match_iterations, which moves every image")
        if self.step_format and not self.match_iterations:
            coded = self.pack == 1 and self.steps > 0 and "barycenter" in names
            text = "false with pack above 1, steps 0 or without refiner barycenter, unless match_iterations is above 0:"
            text += " only matching, and refiner barycenter on images that stay whole, optimise what is stored"
            require(coded, "refine.compression_aware", True, text)


def refiner_options(config: RefineConfig) -> dict[str, Any]:
    """``config.options`` as the dataclass that the one refiner with options was registered with, by its name.

    Raises:
        ConfigError: several refiners have options, none has any, or values that do not fit.
    """
    names = as_tuple(config.refiner)
    owners = [name for name in names if REFINERS[name].options]
    require(len(owners) <= 1, "refine.refiner", config.refiner, f"at most one with options of {', '.join(owners)}")
    owner = owners[0] if owners else names[0]
    found = registered_options(REFINERS[owner].options, config.options, "refine.options", f"refiner {owner}")
    return {owner: found} if owners else {}
