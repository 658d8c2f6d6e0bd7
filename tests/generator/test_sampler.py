"""An image depends on (generator, seed, class, index) alone; solvers, guidance and starts do what their papers say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DiTPipeline, UNet2DModel
from torch import Tensor

from gendistill.config import (
    ClassifierFree,
    DiT,
    ModeGuidance,
    ModelConfig,
    RepulsionGuidance,
    SampleConfig,
    TransportGuidance,
    UNet,
)
from gendistill.config.flat import unflatten
from gendistill.data.pixels import to_uint8
from gendistill.errors import ConfigError, DivergenceError
from gendistill.generator import sampler, schedulers
from gendistill.generator.codec import LatentCodec, PixelCodec
from gendistill.generator.generator import Generator, build_generator
from gendistill.generator.sampler import CPU_ROWS, Clusters, Denoiser, Request, predict, requests_for, sample
from gendistill.generator.schedulers import SCHEDULERS, make_scheduler
from gendistill.objectives import diffusion
from gendistill.runtime import native_bf16
from gendistill.seeding import torch_rng
from tests.generator.autoencoders import kl
from tests.generator.pretrained import dit_folder

ODES = [name for name in SCHEDULERS if name != "ddpm"]
NAMES = ("a", "b", "c")
DIT = ModelConfig(
    architecture=DiT(num_layers=2, num_attention_heads=2, attention_head_dim=8, learned_sigma=True),
    prediction_type="epsilon",
    noise_schedule="linear",
)
EVERYTHING: dict[str, Any] = {
    "guidance": "mode", "guidance_scale": 2.0, "guidance_interval": (0.1, 0.7), "mode_stop": 0.3, "start": "prototypes",
}  # fmt: skip


@pytest.fixture(scope="module")
def unet() -> Generator:
    """v in pixels, cosine schedule."""
    config = ModelConfig(architecture=UNet(block_out_channels=(16, 32), norm_num_groups=8))
    return random_weights(build_generator(config, NAMES, 8, 0, codec=PixelCodec(1)))


def random_weights(generator: Generator) -> Generator:
    """Instead of those of a fresh network, which outputs zeros."""
    rng = torch_rng(0, "weights")
    with torch.no_grad():
        for p in generator.network.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=rng))
    return generator


@pytest.fixture(scope="module")
def dit() -> Generator:
    """epsilon and variance in latents, linear schedule."""
    return random_weights(build_generator(DIT, NAMES, 16, 0, codec=LatentCodec(kl(), 3)))


@pytest.fixture(scope="module")
def pixel_dit() -> Generator:
    """epsilon and variance in pixels, without clipping."""
    made = random_weights(build_generator(DIT, NAMES, 8, 0, codec=PixelCodec(1)))
    made.scheduler = DDPMScheduler.from_config(made.scheduler.config, clip_sample=False)
    return made


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> Generator:
    return request.getfixturevalue(request.param)


both_models = pytest.mark.parametrize("generator", ["unet", "dit"], indirect=True)


def centres(generator: Generator, modes: int = 2) -> Tensor:
    shape = (len(generator.classes), modes, *generator.sample_shape)
    return torch.randn(shape, generator=torch_rng(0, "centres")).clamp(-1, 1)


def clusters_of(centres: Tensor | None) -> Clusters | None:
    """Of masses 1/3, 2/3 and so on, by class."""
    if centres is None:
        return None
    masses = torch.arange(1.0, centres.shape[1] + 1).expand(centres.shape[:2])
    return Clusters(centres, masses / masses.sum(1, keepdim=True))


def images(
    generator: Generator, requests: list[Request], seed: int = 0, prototypes: Tensor | None = None, **options: Any
) -> dict[Request, Tensor]:
    flat = {"num_inference_steps": 5, "batch_size": 4, "mixed_precision": "no", **options}
    config = unflatten(SampleConfig, flat)
    made: dict[Request, Tensor] = {}
    for batch, values in sample(generator, requests, config, seed=seed, clusters=clusters_of(prototypes)):
        made |= dict(zip(batch, values, strict=True))
    return made


def final_x(generator: Generator, requests: list[Request], prototypes: Tensor | None = None, **options: Any) -> Tensor:
    """What is decoded, before it is."""
    config = unflatten(SampleConfig, {"num_inference_steps": 5, "mixed_precision": "no", **options})
    with torch.no_grad():
        return sampler._denoise(Denoiser(generator, "no"), requests, config, 0, clusters_of(prototypes))


# An image is a function of (generator, seed, class, index).


@pytest.mark.slow
@both_models
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_images_do_not_depend_on_order_company_or_batch_size(
    generator: Generator, scheduler: str, options: dict[str, Any]
) -> None:
    options = {**options, "scheduler": scheduler, "prototypes": centres(generator)}
    whole = images(generator, requests_for(3, 3), batch_size=9, **options)
    odd = images(generator, requests_for(3, 3)[::-1], batch_size=5, **options)
    alone = images(generator, [Request(2, 1)], batch_size=1, **options)
    assert all(torch.equal(whole[r], odd[r]) for r in whole)
    assert torch.equal(alone[Request(2, 1)], whole[Request(2, 1)])


TRANSPORT: dict[str, Any] = {"guidance": "transport", "transport_scale": 2.0, "group": 4, "modes": 3}
REPULSION: dict[str, Any] = {"guidance": "repulsion", "repulsion_scale": 2.0, "group": 4, "guidance_scale": 2.0}
coupled = pytest.mark.parametrize("options", [TRANSPORT, REPULSION], ids=["transport", "repulsion"])


@pytest.mark.slow
@both_models
@pytest.mark.parametrize("scheduler", ["dpmsolver++", "heun", "ddpm"])
@coupled
def test_coupled_images_do_not_depend_on_what_else_is_asked_for(
    generator: Generator, scheduler: str, options: dict[str, Any]
) -> None:
    """Nor on the batch size, though the images of a group act on each other."""
    options = {**options, "scheduler": scheduler, "prototypes": centres(generator, 3), "num_inference_steps": 3}
    whole = images(generator, requests_for(3, 6), batch_size=64, **options)
    assert len(whole) == 18
    for size in (1, 7):
        assert all(
            torch.equal(v, whole[r])
            for r, v in images(generator, requests_for(3, 6), batch_size=size, **options).items()
        )
    fewer = images(generator, requests_for(3, 3)[::-1], batch_size=9, **options)
    one_class = images(generator, [Request(2, i) for i in range(6)], batch_size=5, **options)
    rest = images(generator, [Request(1, 5), Request(0, 1), Request(1, 2)], **options)  # as a resumed set asks
    for found, count in ((fewer, 9), (one_class, 6), (rest, 3)):
        assert len(found) == count
        assert all(torch.equal(image, whole[r]) for r, image in found.items())


@coupled
def test_images_of_a_group_act_on_each_other_within_the_interval_alone(
    unet: Generator, options: dict[str, Any]
) -> None:
    requests, options = requests_for(3, 4), {**options, "prototypes": centres(unet, 3)}
    made, other = images(unet, requests, **options), images(unet, requests, **{**options, "group": 2})
    assert not any(torch.equal(made[r], other[r]) for r in requests)
    free = {name: options[name] for name in ("guidance_scale",) if name in options}
    plain = images(unet, requests, **({"guidance": "cfg", **free} if free else {}))
    assert not any(torch.equal(made[r], plain[r]) for r in requests)
    never = images(unet, requests, **options, coupling_interval=(0.01, 0.02))
    idle = images(unet, requests, **{**options, f"{options['guidance']}_scale": 0.0})
    assert all(torch.equal(never[r], plain[r]) and torch.equal(idle[r], plain[r]) for r in requests)


def test_groups_are_whole_runs_of_indices() -> None:
    asked = [Request(0, 3), Request(1, 0), Request(0, 2), Request(0, 4)]
    assert sampler.in_groups(asked, 4) == [[asked[0], asked[2]], [asked[1]], [asked[3]]]
    assert sampler.in_groups(asked, 1) == [[one] for one in asked]
    assert sampler.denoised_images(asked, 4) == 12
    assert sampler.denoised_images(asked, 1) == 4


def test_no_group_depends_on_the_groups_beside_it() -> None:
    """Rows that pad a batch on a GPU are a part of a group, whose targets are thrown away."""
    x0 = torch.randn(7, 1, 4, 4, generator=torch_rng(0))
    seen: list[tuple[int, int]] = []

    def target(own: Tensor, label: int) -> Tensor:
        seen.append((len(own), label))
        return own - own.mean(0)

    found = sampler.by_group(x0, [0, 0, 0, 5, 5, 5, 0], 3, target)
    assert seen == [(3, 0), (3, 5), (1, 0)]
    assert torch.equal(found[3:6], sampler.by_group(x0[3:6], [5] * 3, 3, target))
    with pytest.raises(DivergenceError, match="not finite"):
        sampler.by_group(torch.full((3, 1), torch.nan), [0] * 3, 3, target)


def test_seed_class_and_index_each_change_the_image(unet: Generator) -> None:
    made = images(unet, [Request(0, 0), Request(0, 1), Request(1, 0)])
    assert len({tuple(v.flatten().tolist()) for v in made.values()}) == 3
    other = images(unet, [Request(0, 0)], seed=1)
    assert not torch.equal(other[Request(0, 0)], made[Request(0, 0)])


@both_models
def test_images_are_uint8_of_the_decoded_shape(generator: Generator) -> None:
    for value in images(generator, requests_for(3, 1)).values():
        assert value.dtype == torch.uint8
        assert value.shape == generator.image_shape


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_saved_generator_samples_like_the_one_in_memory(unet: Generator, scheduler: str, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path)
    requests = requests_for(3, 1)
    one, other = (images(g, requests, scheduler=scheduler) for g in (unet, Generator.from_pretrained(tmp_path)))
    assert all(torch.equal(one[r], other[r]) for r in requests)


# Against the papers' equations and diffusers' pipeline.


@pytest.mark.parametrize("steps", [5, 7])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim_follows_its_equation(unet: Generator, steps: int, clip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Song et al. 2021, eq. 12, at sigma = 0, also where the steps do not divide the timesteps."""
    monkeypatch.setattr(unet, "scheduler", DDPMScheduler.from_config(unet.scheduler.config, clip_sample=clip))
    x = torch.randn(unet.sample_shape, generator=torch_rng(0, "sample", 1, 0))[None]
    alpha_bar, ts = unet.alphas_cumprod, [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
    for t, after in zip(ts, [*ts[1:], None], strict=True):
        with torch.no_grad():
            v = unet.denoise(x, torch.tensor([t]), torch.tensor([1]))
        signal, noise = alpha_bar[t].sqrt(), (1 - alpha_bar[t]).sqrt()
        x0, eps = signal * x - noise * v, noise * x + signal * v
        x0 = x0.clamp(-1, 1) if clip else x0
        then = alpha_bar[after] if after is not None else torch.tensor(1.0)
        x = then.sqrt() * x0 + (1 - then).sqrt() * eps
    found = final_x(unet, [Request(1, 0)], num_inference_steps=steps, scheduler="ddim")
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-4)


def test_ddpm_follows_its_equations_with_the_learned_variance(pixel_dit: Generator) -> None:
    """Ho et al. 2020, eq. 7 and 11, Nichol & Dhariwal 2021, eq. 15, on a subset of timesteps (their section 4)."""
    rng = torch_rng(0, "sample", 2, 1)
    x = torch.randn(pixel_dit.sample_shape, generator=rng)[None].double()
    ts = make_scheduler(pixel_dit, "ddpm", 5).timesteps.tolist()
    alpha_bar = pixel_dit.alphas_cumprod.double()
    for t, after in zip(ts, [*ts[1:], None], strict=True):
        with torch.no_grad():
            eps, v = pixel_dit.denoise(x.float(), torch.tensor([t]), torch.tensor([2])).double().chunk(2, 1)
        now, then = alpha_bar[t], alpha_bar[after] if after is not None else torch.tensor(1.0).double()
        beta = 1 - now / then
        mean = (x - beta / (1 - now).sqrt() * eps) / (1 - beta).sqrt()
        posterior = (1 - then) / (1 - now) * beta
        log_variance = (v + 1) / 2 * beta.log() + (1 - v) / 2 * posterior.clamp(min=1e-20).log()
        x = mean
        if after is not None:
            x = mean + (0.5 * log_variance).exp() * torch.randn(x.shape, generator=rng)
    found = final_x(pixel_dit, [Request(2, 1)], scheduler="ddpm")
    torch.testing.assert_close(found.double(), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_published_dit_samples_as_in_its_own_pipeline(
    scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the spacing of that pipeline: leading, from the noisiest timestep whatever alpha_bar is."""
    monkeypatch.setattr(schedulers, "SPACING", "leading")
    monkeypatch.setattr(schedulers, "MEAN_SNR", 0.0)
    folder = dit_folder(tmp_path / "dit")
    requests = [Request(207, 0), Request(3, 1), Request(999, 2)]
    rngs = [torch_rng(5, "sample", r.label, r.index) for r in requests]
    pipeline = DiTPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        [r.label for r in requests], generator=rngs, guidance_scale=scale, num_inference_steps=10, output_type="pt"
    ).images
    options = {"guidance": "cfg" if scale > 1 else "none", "guidance_scale": scale, "scheduler": "ddim"}
    ours = images(Generator.from_pretrained(folder), requests, seed=5, num_inference_steps=10, **options)
    difference = torch.stack(list(ours.values())).int() - (theirs * 255).round().int()
    assert difference.abs().max() <= 1
    assert (difference == 0).float().mean() > 0.99


class Normal(Generator):
    """A generator whose data are normal, of mean (class - 1) / 3 and standard deviation 0.2: all is known exactly."""

    STD = 0.2

    def denoise(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        between = self.alphas_cumprod.double().clamp(min=1e-12).log()
        low, part = t.double().floor().long(), t.double().frac()
        high = (low + 1).clamp(max=len(between) - 1)
        alpha_bar = (between[low] * (1 - part) + between[high] * part).exp().view(-1, 1, 1, 1)
        mean = alpha_bar.sqrt() * self.mean(condition)
        eps = (1 - alpha_bar).sqrt() * (x - mean) / (alpha_bar * self.STD**2 + 1 - alpha_bar)
        v = (eps - (1 - alpha_bar).sqrt() * x) / alpha_bar.sqrt()
        return (v if self.prediction_type == "v_prediction" else eps).float()

    def mean(self, condition: Tensor) -> Tensor:
        return ((condition - 1) / 3).view(-1, 1, 1, 1).double()

    def flow(self, x: Tensor, alpha_bar: Tensor, condition: Tensor) -> Tensor:
        """Where the probability flow takes x."""
        mean = self.mean(condition)
        return mean + self.STD * (x - alpha_bar.sqrt() * mean) / (alpha_bar * self.STD**2 + 1 - alpha_bar).sqrt()


def normal(unet: Generator, **config: Any) -> Normal:
    settings = {"clip_sample": False, "prediction_type": "v_prediction", **config}
    scheduler = DDPMScheduler.from_config(unet.scheduler.config, **settings)
    return Normal(unet.network, scheduler, unet.codec, unet.mapping)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ODES)
@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear"])
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("strength", [None, 0.3, 1.0])
def test_solvers_land_where_the_exact_flow_does(
    unet: Generator, scheduler: str, schedule: str, prediction: str, strength: float | None
) -> None:
    exact = normal(unet, beta_schedule=schedule, prediction_type=prediction)
    requests, steps = [Request(0, 0), Request(2, 3)], 100
    eps = torch.stack(
        [torch.randn(exact.sample_shape, generator=torch_rng(0, "sample", r.label, r.index)) for r in requests]
    )
    timesteps = make_scheduler(exact, scheduler, steps).timesteps
    # Heun visits all timesteps but the first twice.
    timesteps = timesteps[:: 2 if scheduler == "heun" else 1]
    start = timesteps[0 if strength is None else steps - round(strength * steps)]
    alpha_bar = exact.alphas_cumprod[round(float(start))]
    modes = centres(exact)
    x = eps if strength is None else diffusion.add_noise(modes[[0, 2], [0, 1]], eps, alpha_bar.expand(2))
    options = {} if strength is None else {"start": "prototypes", "strength": strength}
    found = final_x(exact, requests, modes, scheduler=scheduler, num_inference_steps=steps, **options)
    wanted = exact.flow(x.double(), alpha_bar.double(), torch.tensor([0, 2]))
    assert (found - wanted).abs().max() < 0.06
    assert (found - wanted).square().mean().sqrt() < 0.02


def test_ancestral_samples_have_the_datas_moments(unet: Generator) -> None:
    exact = normal(unet)
    found = final_x(exact, requests_for(3, 40), scheduler="ddpm", num_inference_steps=50).view(40, 3, -1)
    torch.testing.assert_close(found.mean((0, 2)), torch.tensor([-1 / 3, 0.0, 1 / 3]), atol=0.02, rtol=0)
    torch.testing.assert_close(found.std((0, 2)), torch.full((3,), 0.2), atol=0.03, rtol=0)


# Timesteps.


@both_models
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 10, 61, 103, 500, 1000])
def test_timesteps_descend_from_the_noisiest_and_are_never_negative(
    generator: Generator, scheduler: str, steps: int
) -> None:
    usable = schedulers.usable_timesteps(generator, scheduler)
    found = make_scheduler(generator, scheduler, steps).timesteps
    order = 2 if scheduler == "heun" else 1
    distinct = found[::order]
    assert len(found) == order * len(distinct) - (order - 1)
    assert len(distinct) == min(steps, usable)
    assert float(found[0]) == pytest.approx(usable - 1, abs=1e-2)
    assert (distinct.diff() < 0).all()
    assert found[-1] >= 0


def test_epsilon_starts_where_noise_does_not_yet_drown_the_mean(unet: Generator, dit: Generator) -> None:
    assert schedulers.usable_timesteps(unet, "dpmsolver++") == 1000
    for name in SCHEDULERS:
        kept = schedulers.usable_timesteps(dit, name)
        assert float(dit.alphas_cumprod[kept - 1]) > 0.2 / 64 > float(dit.alphas_cumprod[kept])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_schedule_that_ends_in_pure_noise_has_no_infinities(unet: Generator, scheduler: str) -> None:
    generator = normal(unet, rescale_betas_zero_snr=True)
    assert generator.alphas_cumprod[-1] == 0
    kept = make_scheduler(generator, scheduler, 5).alphas_cumprod
    assert torch.equal(kept, generator.alphas_cumprod[: len(kept)])
    assert final_x(generator, [Request(0, 0)], scheduler=scheduler).abs().max() < 3


def test_latents_are_never_clipped_and_pixels_as_the_scheduler_says(unet: Generator, dit: Generator) -> None:
    clipping = [Generator(**{**vars(g), "scheduler": DDPMScheduler(clip_sample=True)}) for g in (unet, dit)]
    assert make_scheduler(clipping[0], "ddim", 5).config.clip_sample
    assert not make_scheduler(clipping[1], "ddim", 5).config.clip_sample


def test_unknown_scheduler_and_too_many_steps_are_refused(unet: Generator) -> None:
    with pytest.raises(ConfigError, match="expected one of"):
        make_scheduler(unet, "magic", 5)
    with pytest.raises(ConfigError, match="1 to 1000"):
        make_scheduler(unet, "ddim", 2000)


# Guidance.


def some(generator: Generator, t: int = 500) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, *generator.sample_shape, generator=torch_rng(0))
    return x, torch.tensor(t), torch.tensor([0, 2])


@both_models
def test_classifier_free_guidance_extrapolates_and_keeps_the_variance_of_the_class(generator: Generator) -> None:
    x, t, labels = some(generator)
    channels, null = x.shape[1], torch.full((2,), generator.null_class or -1)
    with torch.no_grad():
        with_class = generator.denoise(x, t.expand(2), labels)
        without = generator.denoise(x, t.expand(2), null)
        plain, _ = predict(Denoiser(generator, "no"), x, t, labels, SampleConfig(mixed_precision="no"))
        guidance = SampleConfig(guidance=ClassifierFree(scale=3), mixed_precision="no")
        guided, variance = predict(Denoiser(generator, "no"), x, t, labels, guidance)
    wanted = without + 3 * (with_class - without)
    torch.testing.assert_close(plain, with_class[:, :channels])
    torch.testing.assert_close(guided, wanted[:, :channels], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(guided, plain, atol=1e-3)
    if generator.learned_sigma:
        assert variance is not None
        torch.testing.assert_close(variance, with_class[:, channels:])
    else:
        assert variance is None


def test_outside_the_interval_the_null_pass_is_left_out(unet: Generator) -> None:
    seen: dict[float, set[int]] = {}

    def record(_: Any, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen.setdefault(float(args[1][0]), set()).update(named["class_labels"].tolist())

    hook = unet.network.register_forward_pre_hook(record, with_kwargs=True)
    options = {"guidance": "cfg", "guidance_scale": 2.0, "num_inference_steps": 10, "batch_size": 2}
    images(unet, [Request(0, 0)], guidance_interval=(0.3, 0.7), **options)
    hook.remove()
    assert [t for t, classes in seen.items() if unet.null_class in classes] == [699, 599, 499, 399]
    assert len(seen) == 10


def test_more_guided_channels_than_the_network_has_are_refused(unet: Generator) -> None:
    channels = unet.sample_shape[0]
    options = {"guidance": "cfg", "guidance_scale": 2.0}
    with pytest.raises(ConfigError, match=rf"guidance_channels is {channels + 1}.*expected 1 to {channels}"):
        images(unet, [Request(0, 0)], guidance_channels=channels + 1, **options)
    every = images(unet, [Request(0, 0)], guidance_channels=channels, **options)
    assert torch.equal(every[Request(0, 0)], images(unet, [Request(0, 0)], **options)[Request(0, 0)])


def test_guided_channels_without_classifier_free_guidance_are_refused() -> None:
    with pytest.raises(ConfigError, match="guidance_channels is 1; expected null with guidance_scale 1"):
        ModeGuidance(guidance_channels=1)
    assert ModeGuidance(guidance_channels=1, guidance_scale=2.0).guidance_channels == 1


def test_an_interval_that_holds_no_timestep_is_no_guidance(unet: Generator) -> None:
    requests = requests_for(3, 1)
    plain = images(unet, requests)
    never = images(unet, requests, guidance="cfg", guidance_scale=5.0, guidance_interval=(0.01, 0.02))
    always = images(unet, requests, guidance="cfg", guidance_scale=5.0)
    assert all(torch.equal(plain[r], never[r]) for r in requests)
    assert not all(torch.equal(plain[r], always[r]) for r in requests)


@pytest.mark.slow
@both_models
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_mode_guidance_pulls_the_image_to_its_mode(generator: Generator, scheduler: str) -> None:
    requests, modes = requests_for(3, 3), centres(generator)
    wanted = modes[[r.label for r in requests], [r.index % 2 for r in requests]]
    options = {"scheduler": scheduler, "guidance": "mode", "mode_stop": 0.0}
    found = [final_x(generator, requests, modes, mode_scale=s, **options) for s in (0.0, 0.1, 1.0, 10.0, 1e9)]
    assert torch.equal(found[0], final_x(generator, requests, scheduler=scheduler))
    distances = [float((x - wanted).square().mean()) for x in found]
    assert distances == sorted(distances, reverse=True)
    torch.testing.assert_close(found[-1], wanted, rtol=0, atol=2e-3)


def test_mode_guidance_ends_at_its_stop(unet: Generator) -> None:
    x, _, labels = some(unet)
    modes = centres(unet)[[0, 2], 0]
    config = SampleConfig(guidance=ModeGuidance(scale=1.0, stop=0.5), mixed_precision="no")
    with torch.no_grad():
        for t, acts in ((501, True), (500, False), (10, False)):
            plain, _ = predict(Denoiser(unet, "no"), x, torch.tensor(t), labels, SampleConfig(mixed_precision="no"))
            guided, _ = predict(Denoiser(unet, "no"), x, torch.tensor(t), labels, config, lambda _: modes)
            assert torch.equal(plain, guided) is not acts


def test_strong_transport_guidance_brings_the_group_to_the_atoms_by_mass(unet: Generator) -> None:
    modes = centres(unet)
    options = {**TRANSPORT, "modes": 2, "transport_scale": 1e9, "transport_regularisation": 0.01, "group": 6}
    found = final_x(unet, [Request(1, i) for i in range(6)], modes, coupling_interval=(0.0, 1.0), **options)
    distances = torch.cdist(found.flatten(1), modes[1].flatten(1))
    assert distances.min(1).values.max() < 0.2
    assert distances.argmin(1).bincount().tolist() == [2, 4]  # of masses 1/3 and 2/3


def test_repulsion_drives_the_images_of_a_group_apart(unet: Generator) -> None:
    requests = [Request(0, i) for i in range(6)]
    options = {"guidance": "repulsion", "group": 6, "num_inference_steps": 10}
    spread = [
        torch.pdist(final_x(unet, requests, **options, repulsion_scale=scale).flatten(1)).mean()
        for scale in (0.0, 0.3, 1.0)
    ]
    assert spread[0] < spread[1] < spread[2]


def test_windows_of_one_scale_are_that_scale_everywhere(unet: Generator) -> None:
    requests, cfg = requests_for(3, 1), {"guidance": "cfg"}
    one = images(unet, requests, **cfg, guidance_scale=3.0)
    same = images(unet, requests, **cfg, guidance_windows=(3.0, 3.0, 3.0))
    other = images(unet, requests, **cfg, guidance_windows=(0.5, 3.0, 1.0))
    assert all(torch.equal(one[r], same[r]) for r in requests)
    assert not any(torch.equal(one[r], other[r]) for r in requests)


def test_windows_leave_out_the_null_pass_where_their_scale_is_one_and_mix_below_it(unet: Generator) -> None:
    x, _, labels = some(unet)
    config = SampleConfig(guidance=ClassifierFree(windows=(0.25, 1, 3)), mixed_precision="no")
    rows: list[int] = []

    class Counting(Denoiser):
        def __call__(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            rows.append(len(x))
            return super().__call__(x, t, condition)

    denoiser = Counting(unet, "no")
    with torch.no_grad():
        for t, scale in ((900, 0.25), (500, 1), (100, 3)):
            with_class = unet.denoise(x, torch.tensor(t).expand(2), labels)
            without = unet.denoise(x, torch.tensor(t).expand(2), torch.full((2,), unet.null_class or -1))
            guided, _ = predict(denoiser, x, torch.tensor(t), labels, config)
            torch.testing.assert_close(guided, without + scale * (with_class - without), rtol=1e-4, atol=1e-5)
    assert rows == [4, 2, 4]
    assert [config.guidance.share, ClassifierFree(scale=2, interval=(0.2, 0.7)).share] == pytest.approx([2 / 3, 0.5])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (ClassifierFree, "guidance_scale is 1.0; expected a number more than 1, or guidance_windows"),
        (lambda: ClassifierFree(windows=(1, 1, 1)), "three scales, not all of them 1"),
        (lambda: ClassifierFree(windows=(1, -1, 1)), "guidance_windows is .*expected None or a list"),
        (lambda: ClassifierFree(windows=(1, 2)), "guidance_windows is .*expected None or a list"),
        (lambda: ClassifierFree(scale=2, windows=(1, 2, 1)), "guidance_scale is 2.0; expected 1 with guidance_windows"),
        (
            lambda: ClassifierFree(windows=(1, 2, 1), interval=(0.1, 1)),
            r"guidance_interval is .*expected \[0, 1\] with",
        ),
        (lambda: TransportGuidance(guidance_windows=(1, 2, 1), guidance_scale=2), "expected 1 with guidance_windows"),
        (lambda: RepulsionGuidance(guidance_channels=2), "guidance_channels is 2; expected null"),
        (lambda: ModeGuidance(guidance_interval=(0.2, 0.5)), r"guidance_interval is .*expected \[0, 1\] with guid"),
        (lambda: TransportGuidance(group=1), "group is 1; expected a whole number from 2 to 1000"),
        (lambda: RepulsionGuidance(coupling_interval=(0.8, 0.3)), "coupling_interval is .*two ascending numbers"),
        (lambda: TransportGuidance(regularisation=0), "transport_regularisation is 0; expected a number from 0.01"),
        (lambda: RepulsionGuidance(scale=-1), "repulsion_scale is -1; expected a number of at least 0"),
    ],
)
def test_options_of_guidance_that_do_not_go_together_are_refused(make: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()


def test_guidance_without_a_null_class_is_refused(unet: Generator) -> None:
    network = UNet2DModel.from_config(unet.network.config, num_class_embeds=3)
    generator = Generator(network, unet.scheduler, unet.codec, replace(unet.mapping, conditions=3))
    assert generator.null_class is None
    images(generator, [Request(0, 0)])
    for guidance in ("cfg", "mode"):
        with pytest.raises(ConfigError, match="no null class"):
            images(generator, [Request(0, 0)], guidance=guidance, guidance_scale=2.0, prototypes=centres(generator))
    with pytest.raises(
        ConfigError, match=r"guidance_windows is \[1\.0, 2\.0, 1\.0\], but the network has no null class"
    ):
        images(generator, [Request(0, 0)], guidance="cfg", guidance_windows=(1.0, 2.0, 1.0))
    images(generator, [Request(0, 0)], guidance="repulsion", group=2)


# Prototypes.


@both_models
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.01, 0.4, 1.0])
def test_prototypes_are_noised_as_far_as_strength_says(generator: Generator, scheduler: str, strength: float) -> None:
    steps = make_scheduler(generator, scheduler, 5)
    eps, x0 = torch.randn(2, 2, *generator.sample_shape, generator=torch_rng(0))
    x, timesteps = schedulers.start_from(steps, eps, x0, strength)
    order = 2 if scheduler == "heun" else 1
    assert len(timesteps) == order * max(1, round(5 * strength)) - (order - 1)
    assert torch.equal(timesteps, make_scheduler(generator, scheduler, 5).timesteps[-len(timesteps) :])
    alpha_bar = generator.alphas_cumprod[round(float(timesteps[0]))].expand(2)
    xt = steps.scale_model_input(x, timesteps[0])
    torch.testing.assert_close(xt, diffusion.add_noise(x0, eps, alpha_bar), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_weaker_the_start_the_nearer_the_image_to_its_prototype(unet: Generator, scheduler: str) -> None:
    requests, modes = requests_for(3, 2), centres(unet)
    wanted = modes[[r.label for r in requests], [r.index for r in requests]]
    options = {"scheduler": scheduler, "start": "prototypes", "num_inference_steps": 10}
    found = [final_x(unet, requests, modes, strength=s, **options) for s in (0.1, 0.4, 0.7, 1.0)]
    distances = [float((x - wanted).square().mean()) for x in found]
    assert distances == sorted(distances)


def test_images_take_the_prototypes_in_turn(unet: Generator) -> None:
    modes = centres(unet)
    options = {"guidance": "mode", "mode_scale": 1e9, "mode_stop": 0.0, "prototypes": modes, "start": "prototypes"}
    made = images(unet, requests_for(3, 5), **options)
    for request, image in made.items():
        wanted = to_uint8(modes[request.label, request.index % 2])
        assert (image.int() - wanted.int()).abs().max() <= 1


@pytest.mark.parametrize("options", [{"guidance": "mode"}, {"guidance": "transport"}, {"start": "prototypes"}])
def test_prototypes_left_out_or_of_another_shape_are_refused(unet: Generator, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs clusters of the real images"):
        images(unet, [Request(0, 0)], **options)
    for wrong in (centres(unet)[:2], centres(unet)[..., :4], centres(unet)[:, :0]):
        with pytest.raises(ValueError, match=r"expected \(K,M,c,h,w\)"):
            images(unet, [Request(0, 0)], prototypes=wrong, **options)
    config, lacking = unflatten(SampleConfig, options), Clusters(centres(unet), torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"masses are \(3, 1\); expected \(K,M\) = \(3, 2\)"):
        next(sample(unet, [Request(0, 0)], config, clusters=lacking))


# Precision.


def test_bf16_is_for_the_network_alone(dit: Generator) -> None:
    seen: dict[str, set[torch.dtype]] = {"network": set(), "codec": set()}
    hooks = [
        dit.network.pos_embed.proj.register_forward_hook(lambda *a: seen["network"].add(a[-1].dtype)),
        dit.codec.autoencoder.decoder.conv_in.register_forward_hook(lambda *a: seen["codec"].add(a[-1].dtype)),
    ]
    requests = requests_for(3, 1)
    low = images(dit, requests, mixed_precision="bf16")
    for hook in hooks:
        hook.remove()
    assert seen == {"network": {torch.bfloat16}, "codec": {torch.float32}}
    full = images(dit, requests, mixed_precision="no")
    difference = torch.stack([(low[r].float() - full[r].float()).abs() for r in requests])
    assert 0 < difference.mean() < 10
    chosen = low if native_bf16(torch.device("cpu")) else full
    assert all(torch.equal(images(dit, requests, mixed_precision="auto")[r], chosen[r]) for r in requests)


def test_images_in_bf16_do_not_depend_on_company_either(dit: Generator) -> None:
    whole = images(dit, requests_for(3, 4), mixed_precision="bf16", batch_size=12)
    odd = images(dit, requests_for(3, 4)[::-1], mixed_precision="bf16", batch_size=5)
    assert all(torch.equal(whole[r], odd[r]) for r in whole)


@pytest.mark.parametrize(("precision", "fewest"), [("no", 3), ("bf16", CPU_ROWS)])
def test_few_rows_in_bf16_are_always_padded(unet: Generator, precision: str, fewest: int) -> None:
    """Its rounding hides in most rows which layers depend on their number, so no comparison finds them all."""
    seen: list[int] = []
    hook = unet.network.conv_in.register_forward_hook(lambda *a: seen.append(len(a[-1])))
    denoiser, x = Denoiser(unet, precision), torch.zeros(3, *unet.sample_shape)
    for _ in range(3):  # the first compares
        denoiser(x, torch.tensor(500), torch.zeros(3, dtype=torch.long))
    hook.remove()
    assert seen[-1] == min(seen) == fewest


def test_options_do_not_leak_into_the_generator(unet: Generator) -> None:
    before = replace(unet), dict(unet.scheduler.config), unet.alphas_cumprod.clone()
    images(unet, [Request(0, 0)], scheduler="heun")
    assert before[0] == unet
    assert before[1] == dict(unet.scheduler.config)
    assert torch.equal(before[2], unet.alphas_cumprod)
