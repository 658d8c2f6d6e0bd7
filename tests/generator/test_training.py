"""Training of the generator: golden losses, exact resume, micro-batches, and what the criteria do."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gendistill.config import FinetuneConfig, LogNormal, MinimaxConfig, ModelConfig, UNet
from gendistill.data.dataset import RealData
from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.batch_source import BatchSource, PixelLatents, slices
from gendistill.generator.codec import PixelCodec
from gendistill.generator.generator import Generator, build_generator
from gendistill.generator.trainer import learning_rate_at, train_generator
from gendistill.progress import finish
from gendistill.runtime import Checkpoints, make_accelerator
from tests.helpers import edit

MODEL = ModelConfig(architecture=UNet(block_out_channels=(16, 32), norm_num_groups=8))
GOLDEN = [1.49041, 1.52123, 1.21919, 1.29178, 1.14651, 1.24886, 1.0509, 1.06832]  # torch 2.14, CPU, fp32
CONFIG = FinetuneConfig(model=MODEL, base_steps=8, minimax_steps=8, batch_size=20)


def fresh(data: RealData) -> Generator:
    return build_generator(MODEL, data.classes, data.image_size, 0, codec=PixelCodec(data.channels))


def trained(data: RealData, config: FinetuneConfig = CONFIG, **options: object) -> dict[str, Tensor]:
    accelerator = make_accelerator("no", config.gradient_accumulation_steps)
    return finish(train_generator(fresh(data), PixelLatents(data.train), config, accelerator=accelerator, **options))  # type: ignore[arg-type]


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max((one[k].float() - other[k].float()).abs().max().item() for k in one)


@pytest.mark.slow
@pytest.mark.parametrize("criteria", [None, MinimaxConfig()])
@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_run_stopped_anywhere_resumes_to_the_same_weights(
    digits: RealData, tmp_path: Path, criteria: MinimaxConfig | None, stop: int
) -> None:
    whole = trained(digits, criteria=criteria)
    checkpoints = Checkpoints(tmp_path, every=2, keep=2)
    accelerator = make_accelerator()
    loop = train_generator(
        fresh(digits),
        PixelLatents(digits.train),
        CONFIG,
        accelerator=accelerator,
        criteria=criteria,
        checkpoints=checkpoints,
    )
    for _ in range(stop):
        next(loop)
    loop.close()
    assert checkpoints.steps() == [s for s in (2, 4) if s <= stop]
    assert gap(trained(digits, criteria=criteria, checkpoints=checkpoints), whole) == 0


@pytest.mark.slow
def test_a_checkpoint_is_saved_when_the_last_is_old_however_few_steps_there_were(
    digits: RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(digits, criteria=MinimaxConfig())
    checkpoints = Checkpoints(tmp_path, every=100, keep=9)
    trained(digits, replace(CONFIG, checkpoint_minutes=1e-9), criteria=MinimaxConfig(), checkpoints=checkpoints)
    assert checkpoints.steps() == [1, 2, 3, 4, 5, 6, 7]
    for step in (4, 5, 6, 7):
        shutil.rmtree(tmp_path / f"step-{step:06d}")
    assert gap(trained(digits, criteria=MinimaxConfig(), checkpoints=checkpoints), whole) == 0


@pytest.mark.slow
def test_micro_batches_add_up_to_the_whole_batch(digits: RealData) -> None:
    split = replace(CONFIG, gradient_accumulation_steps=4)
    assert gap(trained(digits, split), trained(digits)) < 1e-4


def test_losses_of_a_tiny_run_are_the_golden_ones(digits: RealData) -> None:
    loop = train_generator(fresh(digits), PixelLatents(digits.train), CONFIG, accelerator=make_accelerator())
    losses = torch.stack([record["denoising"] for record in loop])
    golden = torch.tensor(GOLDEN)
    torch.testing.assert_close(losses, golden, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_criteria_change_what_is_learnt(digits: RealData) -> None:
    silent = MinimaxConfig(representativeness=0, diversity=0)
    same = replace(CONFIG, minimax_learning_rate=1e-3)
    with_memory = trained(digits, same, criteria=silent)
    assert gap(with_memory, trained(digits, same, criteria=MinimaxConfig())) > 0


def test_label_dropout_gives_the_null_class_that_share(digits: RealData) -> None:
    source = BatchSource(fresh(digits), PixelLatents(digits.train), label_dropout=0.25, seed=0, phase="base")
    draws = [source.draw(step, 200, slice(None)) for step in range(10)]
    condition = torch.cat([d.condition for d in draws])
    labels = torch.cat([d.labels for d in draws])
    dropped = condition == 10
    assert 0.2 < dropped.float().mean() < 0.3
    assert torch.equal(condition[~dropped], labels[~dropped])
    assert all(torch.bincount(d.labels, minlength=10).tolist() == [20] * 10 for d in draws)


def test_parts_of_a_batch_are_the_batch(digits: RealData) -> None:
    source = BatchSource(fresh(digits), PixelLatents(digits.train), label_dropout=0.1, seed=3, phase="base")
    whole = source.draw(7, 12, slice(None))
    parts = [source.draw(7, 12, part) for row in slices(12, 2, 3) for part in row]
    order = [i for row in slices(12, 2, 3) for part in row for i in range(12)[part]]
    assert sorted(order) == list(range(12))
    assert torch.equal(torch.cat([p.eps for p in parts]), whole.eps[order])
    assert torch.equal(torch.cat([p.x0 for p in parts]), whole.x0[order])
    assert torch.equal(torch.cat([p.condition for p in parts]), whole.condition[order])


def test_batches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 2 process"):
        slices(9, 2, 1)


def test_rate_warms_up_and_decays() -> None:
    rates = [learning_rate_at(step, 100, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[4] == 1.0
    assert rates[-1] == pytest.approx(0.05, abs=0.01)
    assert {learning_rate_at(step, 100, 1e-3, "constant") for step in range(100)} == {1e-3}


def test_generator_folder_round_trip_and_refusals(digits: RealData, tmp_path: Path) -> None:
    generator = fresh(digits)
    base = {k: v + 1 if v.is_floating_point() else v for k, v in generator.network.state_dict().items()}
    generator.save_pretrained(tmp_path / "g", base=base)
    again = Generator.from_pretrained(tmp_path / "g")
    assert again.hash() == generator.hash()
    assert gap(Generator.from_pretrained(tmp_path / "g", variant="base").network.state_dict(), base) == 0
    with pytest.raises(ArtifactError, match="no variant 'ema'"):
        Generator.from_pretrained(tmp_path / "g", variant="ema")
    (tmp_path / "g" / "gendistill.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        Generator.from_pretrained(tmp_path / "g")
    with pytest.raises(ConfigError, match="multiple of 2"):
        build_generator(MODEL, digits.classes, 9, 0, codec=PixelCodec(1))


FILES = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.base.safetensors",
]


@pytest.mark.parametrize("variant", [None, "base"])
@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_of_a_generator_is_noticed_where_it_is_read(
    digits: RealData, tmp_path: Path, name: str, variant: str | None
) -> None:
    generator = fresh(digits)
    generator.save_pretrained(tmp_path / "g", base=generator.network.state_dict())
    data = (tmp_path / "g" / name).read_bytes()
    (tmp_path / "g" / name).write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    if name.endswith("tensors") and (".base." in name) != (variant == "base"):
        Generator.from_pretrained(tmp_path / "g", variant=variant)
        return
    with pytest.raises(ArtifactError, match=f"{name} was changed after it was written|damaged"):
        Generator.from_pretrained(tmp_path / "g", variant=variant)
    (tmp_path / "g" / name).unlink()
    with pytest.raises(ArtifactError, match=r"is missing|it has no model_index\.json"):
        Generator.from_pretrained(tmp_path / "g", variant=variant)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("unet/config.json", {"norm_eps": None}, "cannot run with its config.json"),
        ("unet/config.json", {"norm_num_groups": True}, "cannot run with its config.json|cannot be loaded"),
        ("unet/config.json", {"downsample_padding": 10**30}, "cannot run with its config.json|cannot be loaded"),
        ("unet/config.json", {"sample_size": "wide"}, "cannot run with its config.json"),
        ("unet/config.json", {"freq_shift": None}, "cannot run with its config.json"),
        ("scheduler/scheduler_config.json", {"trained_betas": 3.0}, "expected 1000 numbers|cannot be read"),
        ("scheduler/scheduler_config.json", {"trained_betas": [2.0, -1.0]}, "expected 1000 numbers"),
        ("scheduler/scheduler_config.json", {"trained_betas": [float("nan")] * 1000}, "expected 1000 numbers"),
    ],
)
def test_settings_with_which_a_network_of_others_cannot_run_are_one_message(
    digits: RealData, tmp_path: Path, name: str, change: dict[str, object], said: str
) -> None:
    fresh(digits).save_pretrained(tmp_path / "g")
    edit(tmp_path / "g" / "gendistill.json")
    Generator.from_pretrained(tmp_path / "g")  # without hashes, as older versions wrote it
    edit(tmp_path / "g" / name, **change)
    with pytest.raises(ArtifactError, match=said):
        Generator.from_pretrained(tmp_path / "g")


def test_training_leaves_a_plain_network_behind(digits: RealData) -> None:
    """No autocast stays wrapped around it, so sampling from it equals sampling from the saved folder."""
    generator = fresh(digits)
    for precision in ("bf16", "no"):
        accelerator = make_accelerator(precision)
        assert accelerator.mixed_precision == precision
        once = replace(CONFIG, base_steps=1)
        loop = train_generator(generator, PixelLatents(digits.train), once, accelerator=accelerator)
        finish(loop)
        copy = fresh(digits)
        copy.network.load_state_dict(generator.network.state_dict())
        inputs = (torch.ones(2, 1, 8, 8), torch.tensor(500), torch.tensor([0, 1]))
        with torch.no_grad():
            one, other = (g.network(*inputs).sample for g in (generator, copy))
        assert torch.equal(one, other)


def test_log_normal_timesteps_are_of_middle_noise_and_leave_the_images_as_they_were(digits: RealData) -> None:
    generator, latents = fresh(digits), PixelLatents(digits.train)
    plain = BatchSource(generator, latents, 0.1, 0, "base").draw(0, 2000, slice(None))
    drawn = BatchSource(generator, latents, 0.1, 0, "base", timesteps=LogNormal(mean=-0.5, std=0.5)).draw(
        0, 2000, slice(None)
    )
    alphas = generator.alphas_cumprod[drawn.t]
    logarithms = 0.5 * ((1 - alphas) / alphas).log()
    assert abs(float(logarithms.mean()) + 0.5) < 0.05
    assert abs(float(logarithms.std()) - 0.5) < 0.05
    assert torch.equal(drawn.x0, plain.x0)
    assert torch.equal(drawn.eps, plain.eps)
    assert torch.equal(drawn.condition, plain.condition)
    assert not torch.equal(drawn.t, plain.t)
