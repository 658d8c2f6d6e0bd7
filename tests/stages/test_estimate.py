"""What a run will take is said before it starts; a dry run touches nothing."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from gendistill.cli import parse
from gendistill.config import ClassifierFree, DiT, RefineConfig, RepulsionGuidance, SampleConfig, Webp
from gendistill.data.sources import load_data
from gendistill.stages import estimate, run
from tests.generator.autoencoders import kl, tiny
from tests.helpers import TINY, gendistill

pytestmark = pytest.mark.slow

STAGES = ["teacher", "generator", "samples", "refinement", "evaluation"]


@pytest.fixture
def options(tmp_path: Path):
    return parse("run", ["--config", str(TINY), "--output_dir", str(tmp_path / "run")])


def test_every_stage_has_its_seconds(options):
    found = run.estimate(options)
    assert list(found) == STAGES
    assert all(value > 0 for value in found.values())


def test_more_work_takes_longer(options):
    more = replace(
        options,
        teacher=replace(options.teacher, steps=100 * options.teacher.steps),
        finetune=replace(options.finetune, base_steps=100 * options.finetune.base_steps),
        sample=replace(options.sample, pool=100 * options.sample.pool),
        refine=replace(options.refine, steps=100 * options.refine.steps, match_iterations=100),
        evaluate=replace(options.evaluate, runs=100),
    )
    usual, found = run.estimate(options), run.estimate(more)
    assert all(found[stage] > 2 * usual[stage] for stage in STAGES)


def test_sampling_counts_whole_groups_and_passes_of_the_null_class(options, monkeypatch):
    monkeypatch.setattr(estimate.time, "perf_counter", iter(range(100)).__next__)  # one second of sampling
    generator = run.check_run(options, load_data("digits", max_per_class=40))

    def seconds(**changes):
        sample = SampleConfig(ipc=3, pool=12, base=True, num_inference_steps=6, batch_size=10, **changes)
        return estimate._samples(replace(options, sample=sample), generator)

    plain = seconds()
    assert seconds(guidance=RepulsionGuidance(group=10)) == pytest.approx(plain * (20 + 10) / (12 + 3))
    assert seconds(guidance=ClassifierFree(windows=(1, 2, 0.5))) == pytest.approx(plain * 5 / 3)
    options = replace(options, finetune=replace(options.finetune, minimax_steps=0))  # the generator has no base
    assert seconds() == pytest.approx(plain * 12 / (12 + 3))


def test_packed_sets_bring_random_images_of_equal_bytes(options, monkeypatch):
    counted = []
    monkeypatch.setattr(estimate, "_training", lambda network, data, batch, steps, *mode: counted.append(steps) or 1.0)
    data = load_data("digits", max_per_class=40)
    shape = {"channels": 1, "image_size": 8, "classes": 10}
    for pack, baselines in ((1, ()), (1, ("bytes",)), (2, ()), (2, ("bytes",))):
        evaluated = replace(options.evaluate, baselines=("random", "kmeans", "full", *baselines))
        refined = replace(options.refine, pack=pack)
        estimate._evaluation(
            replace(options, evaluate=evaluated, refine=refined, sample=SampleConfig(pool=9)), data, shape
        )
    draws, sizes, steps = 5, len(options.refine.ipc), options.evaluate.steps
    assert counted[1] == counted[0]
    assert counted[3] - counted[2] == draws * sizes * steps


def test_coding_counts_the_images_of_every_step_that_codes(monkeypatch):
    data = load_data("digits", max_per_class=40)

    def seconds(**changes):
        monkeypatch.setattr(estimate.time, "perf_counter", iter(range(2)).__next__)  # a second for 16 images
        config = RefineConfig(ipc=(1, 5), steps=20, image_format=Webp(quality=10), **changes)
        return 16 * estimate._coding(config, data)

    assert seconds() == 0
    assert seconds(compression_aware=True) == pytest.approx(60 * 20)
    assert seconds(compression_aware=True, match_iterations=7) == pytest.approx(60 * 20 + 50 * 7)
    assert seconds(compression_aware=True, match_iterations=7, pack=2) == pytest.approx(50 * 7)


def test_a_dry_run_prints_it_and_leaves_the_folder_alone(tmp_path, capsys):
    old = tmp_path / "run"
    old.mkdir()
    (old / "mine.txt").write_text("mine")
    for extra in ((), ("--overwrite", "true")):
        assert gendistill("run", "--config", TINY, "--output_dir", old, "--dry_run", "true", *extra) == 0
        assert re.search(r"this will take about .* CPU threads: teacher .* evaluation", capsys.readouterr().out)
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "mine.txt"]


def test_a_dry_run_refuses_what_the_run_would(tmp_path, capsys):
    assert (
        gendistill("run", "--config", TINY, "--output_dir", tmp_path, "--dry_run", "true", "--sample.ipc", "500") == 2
    )
    assert "training images" in capsys.readouterr().err


@pytest.mark.parametrize("autoencoder", [tiny, kl])
def test_a_generator_in_latents_has_its_seconds_too(options, tmp_path, autoencoder):
    autoencoder(in_channels=1, out_channels=1).save_pretrained(tmp_path / "codec")
    model = replace(options.finetune.model, architecture=DiT(num_layers=1, num_attention_heads=1, patch_size=1))
    latent = replace(options.finetune, codec=str(tmp_path / "codec"), model=model)
    assert run.estimate(replace(options, finetune=latent))["generator"] > 0
