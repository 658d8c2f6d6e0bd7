"""Options of sampling."""

from dataclasses import dataclass
from typing import Literal

from gendistill.config.base import Precision, Sizes, at_least, check_sizes, in_unit, require

Scheduler = Literal["dpmsolver++", "ddim", "ddpm", "unipc", "heun"]
Guidance = Literal["none", "cfg", "mode"]
Start = Literal["noise", "prototypes"]


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Sampling surrogate sets from one generator; the IPC-5 set is the first five of the IPC-10 set.

    Attributes:
        ipc: Images per class of the sets to write: a number, or a list such as [1,5,10].
        classes: Names of the classes to sample; null takes all of the generator's.
        pool: Images per class of a further set, ``pool``, for refinement to select from; 0 writes none.
        base: Also sample the same sets from the generator's plain-diffusion weights, into ``base``.
        num_inference_steps: Denoising steps.
        scheduler: Solver by name.
        guidance: ``none``, ``cfg`` (classifier-free), or ``mode`` (toward k-means modes of the real images, MGD3).
        guidance_scale: Of classifier-free guidance, alone or beside mode guidance; 1 is off and halves the cost.
        guidance_interval: Noise levels t/T between which classifier-free guidance acts.
        mode_scale: Strength of mode guidance.
        mode_stop: Mode guidance ends at this noise level t/T, so that the model alone finishes the details.
        modes: k-means clusters a class, of mode guidance and of prototypes; image i takes cluster i mod modes.
        start: ``noise``, or ``prototypes``: cluster centres of the real images, noised and denoised again (D4M).
        strength: How much noise prototypes get: the share of the denoising steps that are run.
        mixed_precision: ``auto`` is bf16 on a GPU or CPU that computes in it, fp32 elsewhere.
        compile: torch.compile the network; on two CPU cores 1.7 times the speed for a DiT, after 16 s of compiling.
        batch_size: Images denoised at once; changes speed and memory, on CPU never the images.
    """

    ipc: Sizes = (1, 5, 10)
    classes: tuple[str | int, ...] | None = None
    pool: int = 100
    base: bool = True
    num_inference_steps: int = 10
    scheduler: Scheduler = "dpmsolver++"
    guidance: Guidance = "none"
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    mode_scale: float = 0.1
    mode_stop: float = 0.5
    modes: int = 10
    start: Start = "noise"
    strength: float = 0.7
    mixed_precision: Precision = "auto"
    compile: bool = False
    batch_size: int = 128

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """``classes`` as text: YAML reads a name such as 3 as a number."""
        return None if self.classes is None else tuple(str(name) for name in self.classes)

    @property
    def needs_real_images(self) -> bool:
        return self.guidance == "mode" or self.start == "prototypes"

    def __post_init__(self) -> None:
        section = "sample"
        check_sizes(self, section)
        at_least(self, section, 1, "num_inference_steps", "batch_size", "guidance_scale", "modes")
        names = self.class_names
        require(
            names is None or len(set(names)) == len(names) > 0, "sample.classes", names, "null, or names, each once"
        )
        require(
            self.num_inference_steps <= 1000, "sample.num_inference_steps", self.num_inference_steps, "at most 1000"
        )
        at_least(self, section, 0, "pool", "mode_scale")
        in_unit(self, section, "mode_stop", "strength")
        require(self.strength > 0, "sample.strength", self.strength, "more than 0")
        low, high = self.guidance_interval
        require(0 <= low < high <= 1, "sample.guidance_interval", [low, high], "two ascending numbers from 0 to 1")
        scale = self.guidance_scale
        require(self.guidance != "none" or scale == 1, "sample.guidance_scale", scale, "1 with guidance none; say cfg")
        require(self.guidance != "cfg" or scale > 1, "sample.guidance_scale", scale, "more than 1 with guidance cfg")
