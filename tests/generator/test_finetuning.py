"""Fine-tuning and sampling from Python: with a folder or without, the same generator and the same images."""

from __future__ import annotations

import json
import logging
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from diffusers.utils import logging as diffusers_logging
from functorch.compile import nop
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

from gendistill.config import DataConfig, DiT, FinetuneConfig, MinimaxConfig, ModelConfig, SampleConfig, UNet
from gendistill.data.dataset import RealData
from gendistill.data.sources import load_data
from gendistill.errors import ArtifactError, ConfigError, DivergenceError
from gendistill.generator import trainer
from gendistill.generator.batch_source import PixelLatents
from gendistill.generator.codec import PixelCodec
from gendistill.generator.finetuning import (
    _note_small_change,
    _note_unused,
    finetune,
    given_labels,
    trains_null_class,
    with_mode,
)
from gendistill.generator.generator import Generator, build_generator, check_shape
from gendistill.generator.loading import GeneratorMeta
from gendistill.generator.networks import training_flop
from gendistill.generator.surrogate_sets import sample_set, write_sets
from gendistill.io import WorkFolder, read_tensors, write_tensors
from gendistill.progress import show_progress
from gendistill.runtime import all_finite, make_accelerator
from gendistill.surrogate.set import SurrogateSet
from tests.generator.pretrained import IMAGE_SIZE, dit_folder
from tests.helpers import edit

MODEL = ModelConfig(architecture=UNet(block_out_channels=(16, 32), norm_num_groups=8))
CONFIG = FinetuneConfig(model=MODEL, base_steps=3, minimax_steps=3, batch_size=10, checkpointing_steps=2)
SAMPLING = SampleConfig(ipc=(1, 2), pool=3, num_inference_steps=2)


@pytest.fixture(scope="module")
def tuned(digits: RealData) -> Generator:
    return finetune(digits, CONFIG)[0]


def work(path: Path) -> WorkFolder:
    path.mkdir()
    return WorkFolder(path, path / "log.jsonl")


@pytest.mark.slow
def test_a_folder_changes_nothing_but_keeps_what_a_second_call_continues_from(
    digits: RealData, tuned: Generator, tmp_path: Path
) -> None:
    folder = work(tmp_path / "work")
    generator, base = finetune(digits, CONFIG, folder=folder)
    assert generator.hash() == tuned.hash()
    kept = {"base.safetensors", "checkpoints", "log.jsonl", "previews"}
    assert {p.name for p in folder.path.iterdir()} == kept
    phases = [json.loads(line)["phase"] for line in folder.log_path.read_text().splitlines()]
    assert phases == ["base", "minimax", "minimax"]  # with the share of the timesteps with criteria
    again, same = finetune(digits, CONFIG, folder=folder)
    assert again.hash() == tuned.hash()
    assert all(torch.equal(base.state[k], same.state[k]) for k in base.state)
    assert (
        repr(base) == f"BaseWeights({len(base.state)} tensors, {sum(map(torch.numel, base.state.values())):,} values)"
    )
    assert len(folder.log_path.read_text().splitlines()) == 4  # the second call ran the last minimax step only
    write_tensors(folder.path / "base.safetensors", {"x": torch.zeros(2)})
    with pytest.raises(ArtifactError, match=r"base\.safetensors does not hold the state of this training"):
        finetune(digits, CONFIG, folder=folder)


@pytest.mark.slow
def test_a_folder_of_another_training_is_refused(digits: RealData, tmp_path: Path) -> None:
    folder = work(tmp_path / "work")
    finetune(digits, CONFIG, folder=folder)
    finetune(digits, replace(CONFIG, checkpointing_steps=7, mixed_precision="no"), folder=folder)
    fewer = digits.for_classes(digits.classes[:9])
    for data, config, seed in ((digits, replace(CONFIG, base_steps=4), 0), (digits, CONFIG, 1), (fewer, CONFIG, 0)):
        with pytest.raises(ArtifactError, match="belongs to a plain training with other data, options or seed"):
            finetune(data, config, seed=seed, folder=folder)
    with pytest.raises(ArtifactError, match="belongs to another training"):
        finetune(digits, replace(CONFIG, minimax=MinimaxConfig(diversity=1.0)), folder=folder)


def test_steps_of_a_tracker_never_go_back(digits: RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb drops what is logged for a step below the last one."""
    seen: list[int] = []
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: seen.append(step))
    finetune(digits, replace(CONFIG, base_steps=1, minimax_steps=1))
    assert seen == [1, 2]


def test_what_an_earlier_training_knew_is_not_forgotten() -> None:
    """Of a generator that is tuned further: conditions that were given, and that no label was ever dropped."""
    config = FinetuneConfig(pretrained="x", label_dropout=0.0, label_map={"mouse": 333})
    before: GeneratorMeta = {"given_labels": {"crane": 517, "other": 3}, "null_class_trained": False}
    assert given_labels(before, config, ("crane", "mouse", "tench")) == {"crane": 517, "mouse": 333}
    assert given_labels({}, FinetuneConfig(), ("tench",)) is None
    assert not trains_null_class(config, before)
    assert trains_null_class(config, {})
    assert trains_null_class(replace(config, label_dropout=0.1), before)
    assert not trains_null_class(FinetuneConfig(label_dropout=0.0), {})


def test_an_adapter_of_grey_images_samples_grey_ones(tmp_path: Path) -> None:
    dit, folder = dit_folder(tmp_path / "dit"), work(tmp_path / "work")
    grey = load_data(DataConfig(image_size=IMAGE_SIZE, max_per_class=4))
    labels = {name: int(name) for name in grey.classes}
    config = FinetuneConfig(pretrained=str(dit), label_map=labels, adaptation="difffit", minimax_steps=1, batch_size=10)
    finetune(grey, config, folder=folder)
    adapted = Generator.from_pretrained(dit).with_adapter(folder.path / "adapter")
    assert adapted.image_shape == (1, IMAGE_SIZE, IMAGE_SIZE)


def test_a_generator_of_other_images_is_refused_with_what_to_change(digits: RealData, tuned: Generator) -> None:
    larger, colour = load_data(DataConfig(image_size=16, max_per_class=4)), replace(tuned, codec=PixelCodec(3))
    with pytest.raises(ArtifactError, match=r"the data have \(1, 16, 16\)\. Give --data\.image_size 8, or another gen"):
        finetune(larger, replace(CONFIG, base_steps=0), generator=tuned)
    with pytest.raises(ArtifactError, match="Give data in colour, or another generator"):
        check_shape(colour, digits)


def test_a_generator_to_start_from_keeps_its_classes_by_name(digits: RealData, tuned: Generator) -> None:
    seven = digits.for_classes(("7", "3"))
    generator, _ = finetune(seven, replace(CONFIG, base_steps=0, minimax_steps=1), generator=deepcopy(tuned))
    assert generator.label_map == {"7": 7, "3": 3}
    assert generator.meta["steps"] == {"base": 0, "minimax": 1}
    assert repr(generator) == "Generator(unet, 0.16 M parameters, 2 classes, images of 1x8x8)"


def test_a_set_in_memory_is_the_set_in_a_folder(tuned: Generator, tmp_path: Path) -> None:
    three = sample_set(tuned, 3, SAMPLING, seed=4)
    assert three.ipc == 3
    assert torch.equal(sample_set(tuned, 2, SAMPLING, seed=4).images, three.prefix(2).images)
    folder = work(tmp_path / "sets")
    write_sets(tuned, folder, SAMPLING, seed=4)
    for name, count in (("pool", 3), ("ipc-2", 2), ("ipc-1", 1)):
        assert torch.equal(SurrogateSet.load(folder.path / name).images, three.prefix(count).images)
    write_sets(tuned, folder, SAMPLING, seed=4, stage="base")
    assert SurrogateSet.load(folder.path / "base" / "ipc-2").meta["stage"] == "base"
    assert not (folder.path / "base" / "pool").exists()


def test_a_set_without_images_is_refused(tuned: Generator) -> None:
    with pytest.raises(ConfigError, match="ipc is 0; expected"):
        sample_set(tuned, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "option"), [("base", "learning_rate"), ("minimax", "minimax_learning_rate")])
def test_a_training_that_diverges_says_when_and_what_to_change(
    digits: RealData, tmp_path: Path, phase: str, option: str
) -> None:
    """No weights that are not finite are kept, not even in a checkpoint."""
    config = replace(CONFIG, max_grad_norm=0.0, base_steps=12, minimax_steps=12, **{option: 1e30})
    folder = work(tmp_path / "work")
    with pytest.raises(
        DivergenceError, match=rf"diverged: .* step .*; expected .*\. Lower finetune.{option} \(1e\+30\)"
    ):
        finetune(digits, config, folder=folder)
    kept = [path for path in folder.path.rglob("*.safetensors") if phase in path.parts or phase == path.stem]
    assert all(all_finite(read_tensors(path, fix="")[0].values()) for path in kept)


def test_a_generator_whose_weights_are_no_numbers_is_refused(tuned: Generator, tmp_path: Path) -> None:
    broken = deepcopy(tuned)
    with torch.no_grad():
        next(broken.network.parameters())[0] = torch.nan
    broken.save_pretrained(tmp_path / "generator")
    with pytest.raises(ArtifactError, match="weights that are not finite, such as 'conv_in"):
        Generator.from_pretrained(tmp_path / "generator")
    with pytest.raises(DivergenceError, match="images that are not finite; expected numbers"):
        sample_set(broken, 1, SAMPLING)


def test_fine_tuning_leaves_the_accelerator_of_the_caller_alone(digits: RealData) -> None:
    before = dict(GradientState._shared_state)
    mine = Accelerator(cpu=True, gradient_accumulation_steps=8)
    finetune(digits, replace(CONFIG, base_steps=1, minimax_steps=0))
    assert mine.gradient_accumulation_steps == 8
    GradientState._shared_state.clear()
    GradientState._shared_state.update(before)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tuned: Generator, tmp_path: Path) -> None:
    tuned.save_pretrained(tmp_path / "generator")
    path = tmp_path / "generator" / "unet" / "diffusion_pytorch_model.safetensors"
    write_tensors(path, read_tensors(path, fix="")[0] | {"conv_in.bias": torch.zeros(3)}, {"format": "pt"})
    edit(tmp_path / "generator" / "gendistill.json")
    with pytest.raises(ArtifactError, match=r"conv_in.bias.*\[3\].*\[16\]"):
        Generator.from_pretrained(tmp_path / "generator")


@pytest.mark.parametrize("steps", [3, 10**6])
def test_long_trainings_run_as_measured_on_this_machine(tuned: Generator, steps: int) -> None:
    seconds = {"fp32": 3.0, "fp32 compiled": 2.0, "bf16 compiled": 1.0}
    config = replace(CONFIG, base_steps=steps, batch_size=1000)
    found = with_mode(config, tuned, lambda: seconds)
    assert (found.mixed_precision, found.compile) == (("no", False) if steps == 3 else ("bf16", True))
    asked = with_mode(replace(config, compile=False), tuned, lambda: seconds)
    assert (asked.mixed_precision, asked.compile) == ("no", False)


def test_the_work_is_that_of_three_forward_passes(tuned: Generator) -> None:
    """Against a count by hand of the first and the last convolution."""
    network = tuned.network
    ends = [network.conv_in, network.conv_out]
    network.requires_grad_(True)
    whole = training_flop(network, 2)
    by_hand = sum(2 * one.weight.numel() * 8 * 8 for one in ends)
    assert by_hand * 6 < whole
    assert whole == 2 * training_flop(network, 1)


@pytest.mark.slow
def test_a_network_that_the_compiler_fails_on_trains_uncompiled(
    digits: RealData, tuned: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def backend(graph: object, inputs: object) -> None:
        raise ValueError("no code for this")

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compiled(network, backend=backend))
    with show_progress():
        found = finetune(digits, replace(CONFIG, compile=True, mixed_precision="no"))[0]
    assert "trains uncompiled" in capsys.readouterr().err
    assert found.hash() == tuned.hash()


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "checkpointing"), [("no", True), ("bf16", False)])
def test_training_compiles_nothing_after_the_trial(
    digits: RealData, monkeypatch: pytest.MonkeyPatch, precision: str, checkpointing: bool
) -> None:
    """Or the first step would take as long again, and its failure would end the training."""
    compiled, backend = torch.compile, CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", lambda network: compiled(network, backend=backend))
    options = {"compile": True, "mixed_precision": precision, "gradient_checkpointing": checkpointing}
    config, latents = replace(CONFIG, **options), PixelLatents(digits.train)
    generator = build_generator(MODEL, digits.classes, 8, 0, codec=PixelCodec(1))
    loop = trainer.train_generator(generator, latents, config, accelerator=make_accelerator(precision))
    tried: list[int] = []
    step_losses = trainer.step_losses

    def counted(*inputs: object, weighted: bool) -> dict[str, Tensor]:
        tried.append(backend.frame_count)
        return step_losses(*inputs, weighted=weighted)

    monkeypatch.setattr(trainer, "step_losses", counted)
    assert len(list(loop)) == 3
    assert tried[0] > 0
    assert {*tried, backend.frame_count} == {tried[0]}


@pytest.mark.slow
def test_a_network_whose_backward_pass_does_not_compile_trains_uncompiled(
    digits: RealData, tuned: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(graph: object, inputs: object) -> None:
        raise ValueError("no code for this")

    compiled, backend = torch.compile, aot_autograd(fw_compiler=nop, bw_compiler=fails)
    monkeypatch.setattr(torch, "compile", lambda network: compiled(network, backend=backend))
    assert finetune(digits, replace(CONFIG, compile=True, mixed_precision="no"))[0].hash() == tuned.hash()


@pytest.mark.slow
def test_a_training_whose_time_is_over_can_be_sampled_from_and_trains_on_to_the_same_weights(
    digits: RealData, tuned: Generator, tmp_path: Path
) -> None:
    folder, short, stops = work(tmp_path / "work"), replace(CONFIG, max_minutes=1e-9), []
    while "stopped" in (generator := finetune(digits, short, folder=folder)[0]).meta:
        stops.append(generator.meta["stopped"])
        assert len(sample_set(generator, 1, SAMPLING).images) == 10
    assert [(one["phase"], one["step"]) for one in stops] == [("base", 1), ("base", 2), ("minimax", 1), ("minimax", 2)]
    assert generator.meta["steps"] == {"base": 3, "minimax": 3}
    assert generator.hash() == tuned.hash()
    alone = finetune(digits, short)[0]
    assert alone.meta["stopped"] == {"phase": "base", "step": 1}
    assert alone.meta["steps"] == {"base": 1, "minimax": 0}


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "share"), [("squaredcos_cap_v2", 70.2), ("linear", 39.6)])
def test_the_share_of_timesteps_with_criteria_is_said_and_logged(
    digits: RealData, schedule: str, share: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(CONFIG, base_steps=0, minimax_steps=1, model=replace(CONFIG.model, noise_schedule=schedule))
    folder = WorkFolder(tmp_path, tmp_path / "log.jsonl")
    with show_progress():
        finetune(digits, config, folder=folder)
    assert f"the criteria act on {share} % of the timesteps" in " ".join(capsys.readouterr().err.split())
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    logged = [one["share_of_timesteps_with_criteria"] for one in records if "share_of_timesteps_with_criteria" in one]
    assert logged == [pytest.approx(share / 100, abs=5e-4)]


def test_a_dit_of_pixels_is_saved_without_a_word_about_an_autoencoder(tmp_path: Path) -> None:
    model = ModelConfig(architecture=DiT(num_layers=1, num_attention_heads=1, attention_head_dim=8))
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append  # type: ignore[method-assign]
    logging.getLogger("diffusers").addHandler(handler)
    level = diffusers_logging.get_verbosity()
    try:
        build_generator(model, ("a", "b"), 8, 0, codec=PixelCodec(1)).save_pretrained(tmp_path / "dit")
    finally:
        logging.getLogger("diffusers").removeHandler(handler)
    assert not said
    assert diffusers_logging.get_verbosity() == level


@pytest.mark.parametrize(("steps", "rate", "said"), [(100, 3e-4, True), (1000, 1e-3, True), (4000, 1e-3, False)])
def test_few_steps_of_a_pretrained_generator_are_named_with_what_to_set(
    steps: int, rate: float, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with show_progress():
        _note_small_change(FinetuneConfig(minimax_steps=steps, minimax_learning_rate=rate))
    found = " ".join(capsys.readouterr().err.split())
    assert ("such as 12000 and 1e-3" in found) == said
    assert not said or f"the learning rates of the {steps} minimax steps sum to" in found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pretrained": "x", "base_steps": 7, "timesteps": "uniform"}, "finetune.base_steps, finetune.timesteps: not"),
        ({"pretrained": "x", "loss_weighting": "none"}, "finetune.loss_weighting: not used"),
        ({"pretrained": "x", "model": MODEL}, "finetune.model: not used"),
        ({"pretrained": "x", "minimax_steps": 7}, ""),
        ({"base_steps": 7}, ""),
    ],
)
def test_options_of_plain_training_beside_a_pretrained_generator_are_named(
    options: dict, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with show_progress():
        _note_unused(FinetuneConfig(**options))
    found = " ".join(capsys.readouterr().err.split())
    assert said in found
    assert bool(said) == bool(found)


def test_muon_on_divided_weights_is_refused_before_anything_is_encoded(
    digits: RealData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gendistill.runtime.divides_weights", lambda accelerator: True)
    monkeypatch.setattr("gendistill.generator.finetuning.real_latents", None)
    with pytest.raises(ConfigError, match="needs whole weights in every process"):
        finetune(digits, replace(CONFIG, optimizer="muon"))
