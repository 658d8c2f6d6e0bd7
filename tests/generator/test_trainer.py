"""The training loop with every kind of network and adaptation: exact resume, no trace of what only looks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gendistill.config import DiT, FinetuneConfig, MinimaxConfig, ModelConfig, UNet
from gendistill.data.dataset import RealData
from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.adaptation import adapt
from gendistill.generator.batch_source import BatchSource, RealLatents
from gendistill.generator.codec import LatentCodec, PixelCodec
from gendistill.generator.generator import Generator, build_generator
from gendistill.generator.latent_cache import real_latents
from gendistill.generator.trainer import Estimate, train_generator
from gendistill.io import read_tensors, write_tensors
from gendistill.progress import finish
from gendistill.runtime import Checkpoints, make_accelerator
from gendistill.seeding import torch_rng
from tests.generator.autoencoders import kl

UNET = ModelConfig(architecture=UNet(block_out_channels=(16, 32), norm_num_groups=8, attention_levels=1))
DIT = ModelConfig(
    architecture=DiT(num_layers=2, num_attention_heads=2, attention_head_dim=8, learned_sigma=True),
    prediction_type="epsilon",
)
CONFIG = FinetuneConfig(base_steps=6, minimax_steps=6, batch_size=10)


def start(data: RealData, model: ModelConfig, latent: bool = False) -> tuple[Generator, RealLatents]:
    codec = LatentCodec(kl(), 1) if latent else PixelCodec(1)
    generator = build_generator(model, data.classes, 8, 0, codec=codec)
    with torch.no_grad():
        for i, parameter in enumerate(generator.network.parameters()):
            if not parameter.any():  # adaLN-zero: without this an adapter would get no gradient
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch_rng(0, "start", i)))
    return generator, real_latents(codec, data.train, fingerprint=data.fingerprint(), flip=True)


def train(
    data: RealData,
    model: ModelConfig,
    method: str = "full",
    stop: int | None = None,
    latent: bool = False,
    **options: Any,
) -> dict[str, Tensor]:
    generator, latents = start(data, model, latent)
    adapted = adapt(generator.network, method, rank=2)  # type: ignore[arg-type]
    config = options.pop("config", CONFIG)
    accelerator = make_accelerator("no", config.gradient_accumulation_steps)
    loop = train_generator(
        generator, latents, config, accelerator=accelerator, adapted=adapted, criteria=MinimaxConfig(min_alpha_bar=0),
        **options,
    )  # fmt: skip
    if stop is None:
        return finish(loop)
    for _ in range(stop):
        next(loop)
    loop.close()
    return {}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "method", "latent"),
    [
        (UNET, "difffit", False),
        (UNET, "lora", False),
        (DIT, "full", False),
        (DIT, "difffit", True),
        (DIT, "lora", False),
    ],
)
def test_every_adaptation_resumes_to_the_same_weights(
    digits: RealData, tmp_path: Path, model: ModelConfig, method: str, latent: bool
) -> None:
    whole = train(digits, model, method, latent=latent)
    assert not same(whole, train(digits, model, method, latent=latent, seed=1))
    checkpoints = Checkpoints(tmp_path, every=2, keep=1, identity={"seed": "0"})
    train(digits, model, method, stop=5, latent=latent, checkpoints=checkpoints)
    assert checkpoints.steps() == [4]
    assert same(train(digits, model, method, latent=latent, checkpoints=checkpoints), whole)


@pytest.mark.parametrize(("prediction", "loss_weighting"), [("v_prediction", "none"), ("epsilon", "auto")])
def test_unweighted_plain_training_is_as_the_mean_squared_error(
    digits: RealData, prediction: str, loss_weighting: str
) -> None:
    model = replace(UNET, prediction_type=prediction)
    config = replace(CONFIG, model=model, loss_weighting=loss_weighting)
    assert first_loss(digits, config) == pytest.approx(by_hand(digits, config, weighted=False), rel=1e-5)


def test_plain_training_weighs_the_errors_of_v_as_those_of_a_velocity_and_the_criteria_none(digits: RealData) -> None:
    config = replace(CONFIG, model=UNET)
    auto = first_loss(digits, config)
    assert auto == pytest.approx(by_hand(digits, config, weighted=True), rel=1e-5)
    assert auto == first_loss(digits, replace(config, loss_weighting="velocity"))
    second = first_loss(digits, config, MinimaxConfig())
    assert second == first_loss(digits, replace(config, loss_weighting="none"), MinimaxConfig())


def first_loss(data: RealData, config: FinetuneConfig, criteria: MinimaxConfig | None = None) -> float:
    generator, latents = start(data, config.model)
    loop = train_generator(generator, latents, config, accelerator=make_accelerator(), criteria=criteria)
    found = next(loop)["denoising"].item()
    loop.close()
    return found


@torch.no_grad()
def by_hand(data: RealData, config: FinetuneConfig, *, weighted: bool) -> float:
    """Of the first batch, with the weights the network starts from."""
    generator, latents = start(data, config.model)
    source = BatchSource(generator, latents, config.label_dropout, 0, "base", config.flip, config.timesteps)
    batch = source.draw(0, 10, slice(0, 10))
    alpha_bar = generator.alphas_cumprod[batch.t][:, None, None, None]
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    is_v = config.model.prediction_type == "v_prediction"
    wanted = signal * batch.eps - noise * batch.x0 if is_v else batch.eps
    output = generator.network(signal * batch.x0 + noise * batch.eps, batch.t, class_labels=batch.condition).sample
    weights = (signal + noise) ** 2 if weighted else 1
    return (weights * (output - wanted) ** 2).mean().item()


def test_weights_of_a_velocity_that_has_no_bound_are_refused(digits: RealData) -> None:
    with pytest.raises(ConfigError, match=r"loss_weighting is 'velocity'; expected auto or none"):
        FinetuneConfig(model=DIT, loss_weighting="velocity")
    generator, latents = start(digits, DIT)
    config = replace(CONFIG, loss_weighting="velocity")  # for a generator that is given
    with pytest.raises(ConfigError, match="this generator predicts epsilon"):
        next(train_generator(generator, latents, config, accelerator=make_accelerator()))


def test_training_touches_no_global_stream(digits: RealData) -> None:
    generator, latents = start(digits, DIT, latent=True)
    loop = train_generator(generator, latents, CONFIG, accelerator=make_accelerator(), criteria=MinimaxConfig())
    next(loop)
    before = torch.get_rng_state()
    for _ in range(3):
        next(loop)
    assert torch.equal(torch.get_rng_state(), before)
    loop.close()


def test_estimates_and_previews_leave_no_trace(digits: RealData) -> None:
    seen: list[Estimate] = []
    previews: list[int] = []
    calls = {"estimate": seen.append, "preview": previews.append}
    watched = train(digits, DIT, "difffit", **calls, config=replace(CONFIG, preview_steps=2))
    assert same(watched, train(digits, DIT, "difffit"))
    assert previews == [2, 4]
    (found,) = seen
    generator, _ = start(digits, DIT)
    adapted = adapt(generator.network, "difffit")
    assert found.trainable == sum(p.numel() for p in adapted.trainable().values()) < found.parameters
    assert found.seconds_per_step > 0
    assert found.peak_bytes > found.state_bytes
    assert "6 steps" in str(found)


def test_gradient_checkpointing_changes_nothing_but_rounding(digits: RealData) -> None:
    plain = train(digits, DIT, "difffit")
    spared = train(digits, DIT, "difffit", config=replace(CONFIG, gradient_checkpointing=True))
    assert max((plain[k] - spared[k]).abs().max().item() for k in plain) < 1e-5


@pytest.mark.slow
def test_a_compiled_bf16_phase_leaves_a_plain_network_behind(digits: RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured and differentiated, but run as they are: C++ for all of them takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    generator, latents = start(digits, DIT)
    config = replace(CONFIG, compile=True, mixed_precision="bf16", base_steps=2)
    finish(train_generator(generator, latents, config, accelerator=make_accelerator("bf16")))
    inputs = (torch.ones(2, 1, 8, 8), torch.tensor([500, 3]), torch.tensor([0, 1]))
    copy, _ = start(digits, DIT)
    copy.network.load_state_dict(generator.network.state_dict())
    with torch.no_grad():
        assert torch.equal(generator.denoise(*inputs), copy.denoise(*inputs))


def test_an_interrupted_accumulation_leaves_no_gradients_behind(digits: RealData) -> None:
    plain = train(digits, DIT, "difffit", estimate=lambda _: None)
    generator, _ = start(digits, DIT)
    accelerator = make_accelerator("no", 2)
    with accelerator.accumulate(generator.network):
        pass  # interrupted before the last micro-batch: accelerate holds gradients back from here on
    assert same(train(digits, DIT, "difffit", estimate=lambda _: None), plain)


def test_adapters_leave_the_other_weights_alone(digits: RealData) -> None:
    generator, latents = start(digits, DIT)
    before = {k: v.clone() for k, v in generator.network.state_dict().items()}
    adapted = adapt(generator.network, "lora", rank=2)
    finish(
        train_generator(
            generator, latents, CONFIG, accelerator=make_accelerator(), adapted=adapted, criteria=MinimaxConfig()
        )
    )
    after = adapted.merged().state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    layers = ("class_embedder", "attn1.to", "ff.net")
    assert changed == {k for k in before if k.endswith("weight") and any(name in k for name in layers)}


def test_a_checkpoint_of_another_training_is_refused(digits: RealData, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=2, keep=2, identity={"seed": "0"})
    train(digits, DIT, "difffit", stop=3, checkpoints=checkpoints)
    with pytest.raises(ArtifactError, match=r"another training \(seed: '0' there, '1' now"):
        train(digits, DIT, "difffit", checkpoints=Checkpoints(tmp_path, 2, 2, {"seed": "1"}))
    with pytest.raises(ArtifactError, match="another model or adaptation"):
        train(digits, DIT, "lora", checkpoints=checkpoints)
    with pytest.raises(ArtifactError, match="another model or adaptation"):
        train(digits, replace(DIT, architecture=DiT(num_layers=1)), "difffit", checkpoints=checkpoints)
    state = tmp_path / "step-000002" / "state.safetensors"
    good, metadata = read_tensors(state, fix="")
    one_of_each = {name.partition(".")[0]: name for name in good if not name.startswith("network.")}
    others = [{k: v for k, v in good.items() if k != name} for name in one_of_each.values()]
    others += [good | {name: torch.zeros(2)} for name in ("optimizer.0.exp_avg", "optimizer.999.exp_avg", "ema_step")]
    for changed in others:
        write_tensors(state, changed, metadata)
        with pytest.raises(ArtifactError, match="does not hold the state of this training"):
            train(digits, DIT, "difffit", checkpoints=checkpoints)
    write_tensors(state, good, metadata)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="is missing or damaged"):
        train(digits, DIT, "difffit", checkpoints=checkpoints)


def test_the_checkpoint_holds_the_memories_and_only_what_trains(digits: RealData, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=2, keep=2)
    train(digits, DIT, "difffit", stop=3, checkpoints=checkpoints)
    _, state = checkpoints.latest() or (0, {})
    generator, _ = start(digits, DIT)
    names = adapt(generator.network, "difffit").trainable().keys()
    assert {k.removeprefix("network.") for k in state if k.startswith("network.")} == set(names)
    assert state["memory.real.vectors"].any()
    assert state["memory.generated.vectors"].any()


def test_labels_are_not_dropped_without_a_null_class(digits: RealData) -> None:
    generator, latents = start(digits, UNET)
    conditions = generator.conditions + 1  # as if the last row were a class as well
    generator.mapping = replace(generator.mapping, conditions=conditions)
    assert generator.null_class is None
    with pytest.raises(ConfigError, match="no null class"):
        BatchSource(generator, latents, 0.1, 0, "base")
    assert not BatchSource(generator, latents, 0.0, 0, "base").draw(0, 20, slice(None)).dropped.any()


def test_half_of_the_images_are_mirrored_where_asked(digits: RealData) -> None:
    generator, latents = start(digits, UNET)
    plain = BatchSource(generator, latents, 0.0, 0, "base").draw(0, 400, slice(None)).x0
    drawn = BatchSource(generator, latents, 0.0, 0, "base", flip=True).draw(0, 400, slice(None)).x0
    mirrored = (drawn == plain.flip(-1)).flatten(1).all(1)
    assert torch.equal(drawn[~mirrored], plain[~mirrored])
    assert 0.4 < mirrored.float().mean() < 0.6
