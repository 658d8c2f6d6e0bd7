"""From a published kind of folder to a fine-tuned generator and its samples, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline
from PIL import Image
from safetensors.torch import load_file

from gendistill.cli import parse
from gendistill.config import FinetuneConfig
from gendistill.data.sources import load_data
from gendistill.generator.batch_source import BatchSource
from gendistill.generator.finetuning import finetune
from gendistill.generator.generator import Generator
from gendistill.generator.latent_cache import real_latents
from gendistill.generator.trainer import learning_rate_at
from gendistill.seeding import numpy_rng
from tests.generator.pretrained import IMAGE_SIZE, dit_folder
from tests.helpers import edit, files, gendistill

# ImageNette's classes with their true indices in ImageNet-1k.
WORDNET = {
    "n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497,
    "n03394916": 566, "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701,
}  # fmt: skip
SHORT = ("--minimax_steps", 4, "--batch_size", 10, "--checkpointing_steps", 2)


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dit_folder(tmp_path_factory.mktemp("dit") / "DiT")


def image_folder(root: Path, classes: list[str], size: int = IMAGE_SIZE) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(6):
            pixels = numpy_rng(0, name, i).integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def subset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("subset") / "data", list(WORDNET))


@pytest.fixture(scope="module")
def tuned(dit: Path, subset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "generator"
    cache = out.parent / "latents"
    assert gendistill("finetune", "--pretrained", dit, "--data.name", subset, "--adaptation", "difffit", *SHORT,
                      "--flip", "true", "--latent_cache", cache, "--output_dir", out) == 0  # fmt: skip
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "total"), [("minimax/as-released", 12.0), ("minimax/imagenet", 6.2)])
def test_presets_fine_tune_a_pretrained_model_by_rates_that_change_it(
    preset: str, total: float, dit: Path, subset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse("finetune", ["--config", preset, "--output_dir", "x"])
    steps, peak = config.minimax_steps, config.minimax_learning_rate
    rates = [learning_rate_at(step, steps, peak, config.rate_schedule) for step in range(steps)]
    assert sum(rates) == pytest.approx(total, rel=0.02)
    few = ("--minimax_steps", 2, "--data.image_size", IMAGE_SIZE, "--data.name", subset, "--pretrained", dit)
    assert gendistill("finetune", "--config", preset, *few, "--output_dir", tmp_path / "generator") == 0
    assert "the generator will hardly change" in capsys.readouterr().err  # by two steps


def test_a_subset_of_imagenet_conditions_on_its_true_indices(dit: Path, subset: Path, tuned: Path) -> None:
    record = json.loads((tuned / "gendistill.json").read_text())
    assert record["label_map"] == WORDNET
    data = load_data(name=str(subset))
    generator = Generator.from_pretrained(dit).map_classes(data.classes)
    latents = real_latents(generator.codec, data.train, fingerprint=data.fingerprint())
    draw = BatchSource(generator, latents, 0.3, 0, "minimax").draw(0, 200, slice(None))
    seen = set(draw.condition.tolist())
    assert seen == {*WORDNET.values(), 1000}
    kept = ~draw.dropped
    assert torch.equal(draw.condition[kept], torch.tensor(list(WORDNET.values()))[draw.labels[kept]])


@pytest.mark.slow
def test_the_time_of_the_generator_that_was_tuned_further_is_counted(tuned: Path, subset: Path, tmp_path: Path) -> None:
    before = json.loads((tuned / "stage.json").read_text())["training_seconds"]
    assert before.keys() == {"minimax"}  # the folder of diffusers that it came from does not know its own
    assert (
        gendistill("finetune", "--pretrained", tuned, "--data.name", subset, *SHORT, "--output_dir", tmp_path / "out")
        == 0
    )
    parts = json.loads((tmp_path / "out" / "stage.json").read_text())["training_seconds"]
    assert parts["pretrained"] == before["minimax"]
    sampled = ("--ipc", 1, "--num_inference_steps", 1, "--pool", 0, "--base", "true")
    assert gendistill("sample", tmp_path / "out", *sampled, "--output_dir", tmp_path / "sets") == 0
    for place, spent in (("ipc-1", sum(parts.values())), ("base/ipc-1", before["minimax"])):
        manifest = json.loads((tmp_path / "sets" / place / "manifest.json").read_text())
        assert manifest["shared_seconds"]["generator"] == pytest.approx(spent, abs=0.01)


def test_the_fine_tuned_folder_is_a_pipeline_that_carries_licence_and_names(dit: Path, tuned: Path) -> None:
    record = json.loads((tuned / "gendistill.json").read_text())
    assert record["licence"] == "cc-by-nc-4.0"
    assert record["adaptation"] == "difffit"
    index = json.loads((tuned / "model_index.json").read_text())
    assert index["id2label"]["217"].startswith("English springer")
    pipeline = DiTPipeline.from_pretrained(tuned, use_safetensors=True)
    assert pipeline.transformer.config.num_embeds_ada_norm == 1000
    before, after = (load_file(p / "transformer" / "diffusion_pytorch_model.safetensors") for p in (dit, tuned))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[k], after[k]) for k in before)
    base = load_file(tuned / "transformer" / "diffusion_pytorch_model.base.safetensors")
    assert all(torch.equal(before[k], base[k]) for k in before)
    assert not [p for p in tuned.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]
    assert (tuned / "previews" / "minimax.png").is_file()


def test_samples_carry_label_map_and_licence(tuned: Path, tmp_path: Path) -> None:
    options = ("--generator", tuned, "--ipc", "[1,2]", "--pool", 0, "--num_inference_steps", 3)
    assert gendistill("sample", *options, "--output_dir", tmp_path / "all") == 0
    manifest = json.loads((tmp_path / "all" / "ipc-2" / "manifest.json").read_text())
    assert manifest["label_map"] == WORDNET
    assert manifest["licence"] == "cc-by-nc-4.0"
    assert "cc-by-nc-4.0" in (tmp_path / "all" / "ipc-2" / "README.md").read_text()
    some = ("--classes", "[n03888257,n01440764]", "--base", "false")
    assert gendistill("sample", *options, *some, "--output_dir", tmp_path / "some") == 0
    whole, part = files(tmp_path / "all" / "ipc-2"), files(tmp_path / "some" / "ipc-2")
    assert len(part) == 4
    assert part == {k: whole[k] for k in part}  # a class looks the same in any company


def test_an_adapter_of_few_bytes_stands_for_the_whole(dit: Path, tuned: Path, tmp_path: Path) -> None:
    options = ("--ipc", 1, "--pool", 0, "--num_inference_steps", 3)
    assert gendistill("sample", "--generator", tuned, "--base", "false", *options, "--output_dir", tmp_path / "a") == 0
    adapter = ("--generator", dit, "--adapter", tuned / "adapter")
    assert gendistill("sample", *adapter, *options, "--output_dir", tmp_path / "b") == 0
    assert files(tmp_path / "a" / "ipc-1") == files(tmp_path / "b" / "ipc-1")
    one, other = (json.loads((tmp_path / n / "ipc-1" / "manifest.json").read_text()) for n in ("a", "b"))
    assert one["data"] == other["data"] != {}
    assert one["licence"] == other["licence"] == "cc-by-nc-4.0"
    other = dit_folder(tmp_path / "other", seed=1)
    wrong = ("--generator", other, "--adapter", tuned / "adapter")
    assert gendistill("sample", *wrong, *options, "--output_dir", tmp_path / "c") == 2


def test_the_model_itself_samples_classes_by_name(dit: Path, tmp_path: Path) -> None:
    out = tmp_path / "plain"
    options = ("--ipc", 1, "--pool", 0, "--num_inference_steps", 2, "--guidance", "cfg", "--guidance_scale", 4)
    classes = ("--classes", "[tench,English springer]")
    assert gendistill("sample", "--generator", dit, *classes, *options, "--output_dir", out) == 0
    manifest = json.loads((out / "ipc-1" / "manifest.json").read_text())
    assert manifest["label_map"] == {"tench": 0, "English springer": 217}
    assert manifest["sampling"]["guidance_scale"] == 4


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert gendistill(*arguments) == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_bad_input_is_refused_with_what_to_do(
    dit: Path, subset: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("finetune", "--pretrained", dit, *SHORT, "--output_dir", tmp_path / "out")
    strange = image_folder(tmp_path / "strange", ["n01440764", "my own cat"])
    said = refused(capsys, *options, "--data.name", strange)
    assert "my own cat" in said
    assert "label_map" in said
    assert gendistill(*options, "--data.name", strange, "--label_map", '{"my own cat": 281}') == 0
    assert json.loads((tmp_path / "out" / "gendistill.json").read_text())["label_map"]["my own cat"] == 281

    options = ("finetune", "--pretrained", dit, *SHORT, "--output_dir", tmp_path / "out2")
    large = image_folder(tmp_path / "large", ["tench", "parachute"], 32)
    assert "--data.image_size 16" in refused(capsys, *options, "--data.name", large)
    kept = tmp_path / "films" / "holiday.partial"
    kept.parent.mkdir()
    kept.write_text("not ours")
    said = refused(capsys, *options, "--data.name", subset, "--latent_cache", kept.parent)
    assert "other files" in said
    assert [p.name for p in kept.parent.iterdir()] == [kept.name]
    cache = tuned.parent / "latents"
    said = refused(capsys, *options, "--data.name", subset, "--latent_cache", cache)  # encoded with flip
    assert "flip" in said
    said = refused(capsys, "sample", "--generator", dit, "--guidance_scale", 2, "--output_dir", tmp_path / "s")
    assert "guidance" in said
    said = refused(capsys, "sample", "--generator", tmp_path / "nothing", "--output_dir", tmp_path / "s")
    assert "nothing" in said
    said = refused(capsys, "sample", "--generator", tuned, "--classes", "[cat]", "--output_dir", tmp_path / "s")
    assert "cat" in said
    for twice in ("[n01440764,n01440764]", "[]"):
        said = refused(capsys, "sample", "--generator", tuned, "--classes", twice, "--output_dir", tmp_path / "s")
        assert "sample.classes" in said
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "out2").exists()


def test_a_folder_whose_parts_do_not_belong_together_is_refused(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = shutil.copytree(tuned, tmp_path / "copy")
    other = dit_folder(tmp_path / "other", seed=3)
    weights = "vae/diffusion_pytorch_model.safetensors"
    from tests.generator.autoencoders import kl

    kl(seed=5, scaling_factor=0.18215).save_pretrained(other / "vae")
    shutil.copy(other / weights, copy / weights)
    assert f"{weights} was changed" in refused(capsys, "sample", "--generator", copy, "--output_dir", tmp_path / "s")
    edit(copy / "gendistill.json")
    said = refused(capsys, "sample", "--generator", copy, "--output_dir", tmp_path / "s")
    assert "autoencoder" in said
    record = json.loads((copy / "gendistill.json").read_text())
    del record["label_map"]
    (copy / "gendistill.json").write_text(json.dumps(record))
    assert "label_map" in refused(capsys, "sample", "--generator", copy, "--output_dir", tmp_path / "s")
    shutil.copy(other / "transformer" / "config.json", copy / "transformer" / "config.json")
    broken = json.loads((copy / "transformer" / "config.json").read_text()) | {"num_layers": 4}
    (copy / "transformer" / "config.json").write_text(json.dumps(broken))
    assert "lack" in refused(capsys, "sample", "--generator", copy, "--output_dir", tmp_path / "s")


@pytest.mark.slow
def test_a_given_condition_is_kept_where_its_name_could_mean_two(
    dit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ImageNet has two cranes, a bird (134) and a machine (517)."""
    data = image_folder(tmp_path / "data", ["crane", "tench"])
    options = ("finetune", "--pretrained", dit, *SHORT, "--output_dir", tmp_path / "out", "--data.name", data)
    assert "134" in refused(capsys, *options)
    assert gendistill(*options, "--label_map", '{"crane": 517}') == 0
    sample = ("sample", "--generator", tmp_path / "out", "--ipc", 1, "--pool", 0, "--num_inference_steps", 1)
    assert gendistill(*sample, "--classes", "[crane]", "--output_dir", tmp_path / "s") == 0
    assert json.loads((tmp_path / "s" / "ipc-1" / "manifest.json").read_text())["label_map"] == {"crane": 517}


@pytest.mark.parametrize(
    "change", [{"conditions": "many"}, {"conditions": 999}, {"codec": {}}, {"label_map": {"tench": 0}}]
)
def test_a_damaged_record_is_one_message(
    tuned: Path, tmp_path: Path, change: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = shutil.copytree(tuned, tmp_path / "copy")
    edit(copy / "gendistill.json", **change)
    said = refused(capsys, "sample", "--generator", copy, "--output_dir", tmp_path / "s")
    assert "Traceback" not in said
    assert said.startswith("gendistill: ")


def test_a_generator_of_other_classes_is_not_trained_by_position(dit: Path, tmp_path: Path) -> None:
    data = load_data(name=str(image_folder(tmp_path / "data", ["tench", "parachute"])))
    config = FinetuneConfig(base_steps=1, minimax_steps=1, batch_size=4)
    whole = Generator.from_pretrained(dit)
    tuned, _ = finetune(data, config, generator=whole)
    assert tuned.label_map == {"parachute": 701, "tench": 0}
