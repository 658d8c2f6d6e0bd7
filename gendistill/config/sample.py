"""Options of sampling."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from gendistill.config.base import (
    Batch,
    Count,
    Flat,
    NonNegative,
    Options,
    PerClass,
    PositiveShare,
    Precision,
    Range,
    Share,
    Sizes,
    check_sizes,
    require,
)
from gendistill.config.images import ImageFormat

Scheduler = Literal["dpmsolver++", "ddim", "ddpm", "unipc", "heun"]


Interval = tuple[Share, Share]
Windows = tuple[NonNegative, NonNegative, NonNegative]


def _check_interval(name: str, interval: Interval) -> None:
    low, high = interval
    require(low < high, f"sample.{name}", [low, high], "two ascending numbers from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ClassifierFree(Options):
    """Classifier-free guidance (arXiv 2207.12598).

    Attributes:
        scale: Scale of classifier-free guidance; together with another guidance, 1 turns it off and halves the cost.
        interval: Noise levels t/T between which classifier-free guidance acts.
        channels: The first so many channels are guided; null guides all. The released Minimax code guides three of four
            latent channels.
        windows: Three scales instead, for the noisiest, the middle and the cleanest third of the noise levels t/T;
            1 turns guidance off there, and a scale below 1 mixes the predictions with and without the class.
    """

    section: ClassVar[str] = "sample"
    kind: ClassVar[str | None] = "cfg"

    scale: Annotated[float, Range(1), Flat("guidance_scale")] = 1.0
    interval: Annotated[Interval, Flat("guidance_interval")] = (0.0, 1.0)
    channels: Annotated[Count | None, Flat("guidance_channels")] = None
    windows: Annotated[Windows | None, Flat("guidance_windows")] = None

    def check(self) -> None:
        _check_interval("guidance_interval", self.interval)
        if self.windows is None:
            require(self.scale > 1, "sample.guidance_scale", self.scale, "a number more than 1, or guidance_windows")
            return
        windows = list(self.windows)
        require(windows != [1, 1, 1], "sample.guidance_windows", windows, "three scales, not all of them 1")
        instead = "with guidance_windows, which has the scale of every noise level"
        require(self.scale == 1, "sample.guidance_scale", self.scale, f"1 {instead}")
        require(self.interval == (0, 1), "sample.guidance_interval", list(self.interval), f"[0, 1] {instead}")

    @property
    def share(self) -> float:
        """Share of the noise levels where it acts, which cost two passes of the network."""
        if self.windows is None:
            return self.interval[1] - self.interval[0]
        return sum(scale != 1 for scale in self.windows) / len(self.windows)


@dataclass(frozen=True, kw_only=True)
class BesideClassifierFree(Options):
    """Options of classifier-free guidance that acts beside another guidance.

    Attributes:
        guidance_scale: Scale of classifier-free guidance in addition; 1 turns it off.
        guidance_interval: Noise levels t/T between which classifier-free guidance acts.
        guidance_channels: The first so many channels have classifier-free guidance; null: all.
        guidance_windows: Three scales instead, for the noisiest, the middle and the cleanest third of t/T.
    """

    section: ClassVar[str] = "sample"

    guidance_scale: Annotated[float, Range(1)] = 1.0
    guidance_interval: Interval = (0.0, 1.0)
    guidance_channels: Count | None = None
    guidance_windows: Windows | None = None

    @property
    def classifier_free(self) -> ClassifierFree | None:
        """The classifier-free guidance beside it; None where there is none."""
        if self.guidance_scale == 1 and self.guidance_windows is None:
            return None
        return ClassifierFree(
            scale=self.guidance_scale,
            interval=self.guidance_interval,
            channels=self.guidance_channels,
            windows=self.guidance_windows,
        )

    def check(self) -> None:
        _check_interval("guidance_interval", self.guidance_interval)
        if self.classifier_free is None:
            alone, channels = "with guidance_scale 1, which has no classifier-free guidance", self.guidance_channels
            require(channels is None, "sample.guidance_channels", channels, f"null {alone}")
            interval = list(self.guidance_interval)
            require(interval == [0, 1], "sample.guidance_interval", interval, f"[0, 1] {alone}")


@dataclass(frozen=True, kw_only=True)
class ModeGuidance(BesideClassifierFree):
    """Guidance toward k-means modes of the real images (MGD3, arXiv 2505.18963), also with classifier-free guidance.

    Attributes:
        scale: Strength of mode guidance.
        stop: Mode guidance ends at this noise level t/T; the model alone generates the details.
        modes: k-means clusters per class; image i uses cluster i mod modes, and guidance transport all of them.
    """

    kind: ClassVar[str | None] = "mode"

    scale: Annotated[NonNegative, Flat("mode_scale")] = 0.3
    stop: Annotated[Share, Flat("mode_stop")] = 0.5
    modes: PerClass = 10


@dataclass(frozen=True, kw_only=True)
class CoupledGuidance(BesideClassifierFree):
    """Guidance that moves the images of a group together.

    Attributes:
        group: Images of a class that are denoised together, whichever of them are asked for; image i is in group
            i // group.
        coupling_interval: Noise levels t/T between which the images of a group act on each other.
    """

    group: Annotated[int, Range(2, 1000)] = 10
    coupling_interval: Interval = (0.3, 0.8)

    def check(self) -> None:
        super().check()
        _check_interval("coupling_interval", self.coupling_interval)


@dataclass(frozen=True, kw_only=True)
class TransportGuidance(CoupledGuidance):
    """Guidance of a group of images toward a transport plan to k-means modes of the real images (after DMGD).

    Attributes:
        scale: Strength of the guidance toward the plan's targets.
        regularisation: Entropy of the plan, in units of the mean cost; a large one draws all targets to the mean.
        modes: k-means clusters per class, with their shares of the real images as masses.
    """

    kind: ClassVar[str | None] = "transport"

    scale: Annotated[NonNegative, Flat("transport_scale")] = 0.1
    regularisation: Annotated[float, Range(0.01, 100), Flat("transport_regularisation")] = 0.05
    modes: PerClass = 10


@dataclass(frozen=True, kw_only=True)
class RepulsionGuidance(CoupledGuidance):
    """Repulsion between the images of a group (after particle guidance, arXiv 2310.13102).

    Attributes:
        scale: Strength of the repulsion; 1 moves an image by at most the distance of neighbours where sigma^2 equals
            the square root of alpha_bar.
    """

    kind: ClassVar[str | None] = "repulsion"

    scale: Annotated[NonNegative, Flat("repulsion_scale")] = 0.1


@dataclass(frozen=True, kw_only=True)
class Prototypes(Options):
    """Start from cluster centres of the real images, noised and denoised again (D4M, arXiv 2407.15138).

    Attributes:
        modes: k-means clusters per class; image i uses cluster i mod modes.
        strength: Noise of the prototypes: the share of the denoising steps that are run.
    """

    section: ClassVar[str] = "sample"
    kind: ClassVar[str | None] = "prototypes"

    modes: PerClass = 10
    strength: PositiveShare = 0.7


Guidance = Literal["none"] | ClassifierFree | ModeGuidance | TransportGuidance | RepulsionGuidance
Start = Literal["noise"] | Prototypes


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Options):
    """Sampling surrogate sets from one generator; the IPC-5 set is the first five of the IPC-10 set.

    Attributes:
        ipc: Images per class of the sets to write: a number, or a list such as [1,5,10].
        classes: Names of the classes to sample; null samples all classes of the generator. In YAML a name such as 01
            needs quotes.
        pool: Images per class of another set, ``pool``, from which refinement selects; 0 writes none.
        base: Also sample the same sets from the weights before the minimax phase, if the generator has them, into
            ``base``.
        num_inference_steps: Denoising steps.
        scheduler: Name of the solver.
        guidance: ``none``, ``cfg`` (classifier-free), ``mode`` (toward k-means modes of the real images, MGD3),
            ``transport`` (a group of images toward a transport plan to those modes), or ``repulsion`` (the images of a
            group from each other).
        start: ``noise``, or ``prototypes``: cluster centres of the real images, noised and denoised again (D4M).
        mixed_precision: ``auto`` is bf16 on a GPU or CPU that computes in it, fp32 elsewhere.
        compile: torch.compile the network; on two CPU cores 1.7 times the speed for a DiT, after 16 s of compiling.
        image_format: Format of the image files: ``png`` or ``webp_lossless``, which keep every pixel, or ``webp``,
            ``jpeg`` or ``avif`` with an image_quality; the pixels of such a set are the decoded ones.
        batch_size: Images denoised at once, at least a group; it changes speed and memory, but not the images (on CPU).
    """

    section: ClassVar[str] = "sample"

    ipc: Sizes = (1, 5, 10)
    classes: tuple[str | int, ...] | None = None
    pool: Annotated[int, Range(0, 100_000)] = 100
    base: bool = True
    num_inference_steps: Annotated[int, Range(1, 1000)] = 10
    scheduler: Scheduler = "dpmsolver++"
    guidance: Guidance = "none"
    start: Start = "noise"
    mixed_precision: Precision = "auto"
    compile: bool = False
    image_format: ImageFormat = "png"
    batch_size: Batch = 128

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """``classes`` as text: YAML reads a name such as 3 as a number."""
        return None if self.classes is None else tuple(str(name) for name in self.classes)

    @property
    def modes(self) -> int | None:
        """k-means clusters a class of the real images, where sampling needs those images."""
        return self._clustered[0][1] if self._clustered else None

    @property
    def needs_data(self) -> str | None:
        """The choice that needs the real images, such as ``guidance mode``; None where none does."""
        return self._clustered[0][0] if self._clustered else None

    @property
    def _clustered(self) -> list[tuple[str, int]]:
        """The choices that use clusters of the real images, and how many of a class."""
        chosen = {"guidance": self.guidance, "start": self.start}
        clustered = (ModeGuidance, TransportGuidance, Prototypes)
        return [(f"{name} {one.kind}", one.modes) for name, one in chosen.items() if isinstance(one, clustered)]

    @property
    def group(self) -> int:
        """Images of a class that are denoised together: 1 where they do not act on each other."""
        return self.guidance.group if isinstance(self.guidance, CoupledGuidance) else 1

    @property
    def classifier_free(self) -> ClassifierFree | None:
        """The classifier-free guidance, alone or beside another one; None where there is none."""
        if isinstance(self.guidance, BesideClassifierFree):
            return self.guidance.classifier_free
        return self.guidance if isinstance(self.guidance, ClassifierFree) else None

    def check(self) -> None:
        super().check()
        check_sizes(self.ipc, "sample.ipc")
        names = self.class_names
        unique = names is None or len(set(names)) == len(names) > 0
        require(unique, "sample.classes", names, "None, or names, each once")
        if len(self._clustered) == 2:
            (guidance, modes), (_, own) = self._clustered
            wanted = f"{modes}, because prototypes and {guidance} share their clusters"
            require(own == modes, "sample.modes", own, wanted)
