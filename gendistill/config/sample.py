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

Scheduler = Literal["dpmsolver++", "ddim", "ddpm", "unipc", "heun"]


def _check_interval(interval: tuple[float, float]) -> None:
    low, high = interval
    require(low < high, "sample.guidance_interval", [low, high], "two ascending numbers from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ClassifierFree(Options):
    """Classifier-free guidance (arXiv 2207.12598).

    Attributes:
        scale: Scale of classifier-free guidance; together with mode guidance, 1 turns it off and halves the cost.
        interval: Noise levels t/T between which classifier-free guidance acts.
        channels: The first so many channels are guided; null guides all. The released Minimax code guides three of four
            latent channels.
    """

    section: ClassVar[str] = "sample"
    kind: ClassVar[str | None] = "cfg"

    scale: Annotated[float, Range(1, open_low=True), Flat("guidance_scale", 1.0)]
    interval: Annotated[tuple[Share, Share], Flat("guidance_interval")] = (0.0, 1.0)
    channels: Annotated[Count | None, Flat("guidance_channels")] = None

    def check(self) -> None:
        _check_interval(self.interval)


@dataclass(frozen=True, kw_only=True)
class ModeGuidance(Options):
    """Guidance toward k-means modes of the real images (MGD3, arXiv 2505.18963), also with classifier-free guidance.

    Attributes:
        guidance_scale: Scale of classifier-free guidance in addition; 1 turns it off.
        guidance_interval: Noise levels t/T between which classifier-free guidance acts.
        guidance_channels: The first so many channels have classifier-free guidance; null: all.
        scale: Strength of mode guidance.
        stop: Mode guidance ends at this noise level t/T; the model alone generates the details.
        modes: k-means clusters per class; image i uses cluster i mod modes.
    """

    section: ClassVar[str] = "sample"
    kind: ClassVar[str | None] = "mode"

    guidance_scale: Annotated[float, Range(1)] = 1.0
    guidance_interval: tuple[Share, Share] = (0.0, 1.0)
    guidance_channels: Count | None = None
    scale: Annotated[NonNegative, Flat("mode_scale")] = 0.1
    stop: Annotated[Share, Flat("mode_stop")] = 0.5
    modes: PerClass = 10

    def check(self) -> None:
        _check_interval(self.guidance_interval)
        used = self.guidance_channels is None or self.guidance_scale != 1
        expected = "null with guidance_scale 1, which has no classifier-free guidance"
        require(used, "sample.guidance_channels", self.guidance_channels, expected)


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


Guidance = Literal["none"] | ClassifierFree | ModeGuidance
Start = Literal["noise"] | Prototypes


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Options):
    """Sampling surrogate sets from one generator; the IPC-5 set is the first five of the IPC-10 set.

    Attributes:
        ipc: Images per class of the sets to write: a number, or a list such as [1,5,10].
        classes: Names of the classes to sample; null samples all classes of the generator.
        pool: Images per class of another set, ``pool``, from which refinement selects; 0 writes none.
        base: Also sample the same sets from the generator's plain-diffusion weights, into ``base``.
        num_inference_steps: Denoising steps.
        scheduler: Name of the solver.
        guidance: ``none``, ``cfg`` (classifier-free), or ``mode`` (toward k-means modes of the real images, MGD3).
        start: ``noise``, or ``prototypes``: cluster centres of the real images, noised and denoised again (D4M).
        mixed_precision: ``auto`` is bf16 on a GPU or CPU that computes in it, fp32 elsewhere.
        compile: torch.compile the network; on two CPU cores 1.7 times the speed for a DiT, after 16 s of compiling.
        batch_size: Images denoised at once; it changes speed and memory, but not the images (on CPU).
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
    batch_size: Batch = 128

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """``classes`` as text: YAML reads a name such as 3 as a number."""
        return None if self.classes is None else tuple(str(name) for name in self.classes)

    @property
    def modes(self) -> int | None:
        """k-means clusters a class of the real images, where sampling needs those images."""
        chosen = (self.guidance, self.start)
        return next((one.modes for one in chosen if isinstance(one, (ModeGuidance, Prototypes))), None)

    @property
    def classifier_free(self) -> ClassifierFree | None:
        """The classifier-free guidance, alone or beside that of modes; None where there is none."""
        if isinstance(self.guidance, ModeGuidance) and self.guidance.guidance_scale != 1:
            mode = self.guidance
            return ClassifierFree(
                scale=mode.guidance_scale, interval=mode.guidance_interval, channels=mode.guidance_channels
            )
        return self.guidance if isinstance(self.guidance, ClassifierFree) else None

    def check(self) -> None:
        super().check()
        check_sizes(self.ipc, "sample.ipc")
        names = self.class_names
        unique = names is None or len(set(names)) == len(names) > 0
        require(unique, "sample.classes", names, "None, or names, each once")
        if isinstance(self.guidance, ModeGuidance) and isinstance(self.start, Prototypes):
            wanted = f"{self.guidance.modes}, because prototypes and guidance mode share their clusters"
            require(self.start.modes == self.guidance.modes, "sample.modes", self.start.modes, wanted)
