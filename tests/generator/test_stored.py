"""A generator learns from a collection in a file as from one in memory, and never reads all of it together."""

from __future__ import annotations

import pytest
import torch

from gendistill.config import FinetuneConfig, ModelConfig, SampleConfig, UNet
from gendistill.config.sample import ModeGuidance
from gendistill.data.dataset import RealData
from gendistill.generator.batch_source import BatchSource, PixelLatents
from gendistill.generator.codec import LatentCodec, PixelCodec
from gendistill.generator.finetuning import finetune
from gendistill.generator.generator import Generator, build_generator
from gendistill.generator.latent_cache import real_latents
from gendistill.generator.surrogate_sets import sample_set
from tests.data.mapped import MOST, noise, stored
from tests.generator.autoencoders import kl

MODEL = ModelConfig(architecture=UNet(block_out_channels=(16, 32), norm_num_groups=8))
MODES = SampleConfig(num_inference_steps=2, guidance=ModeGuidance(modes=2))


@pytest.fixture(scope="module")
def generator(digits: RealData) -> Generator:
    return build_generator(MODEL, digits.classes, digits.image_size, 0, codec=PixelCodec(1))


def test_training_batches_are_those_of_memory(digits: RealData, generator: Generator) -> None:
    sources = [
        BatchSource(generator, PixelLatents(data.train), 0.0, 3, "base", flip=True) for data in (digits, stored(digits))
    ]
    for step in (0, 5):
        ours, theirs = (source.draw(step, 20, slice(0, 20)) for source in sources)
        assert torch.equal(ours.x0, theirs.x0)
        assert torch.equal(ours.labels, theirs.labels)


def test_latents_are_those_of_memory(digits: RealData) -> None:
    found = [
        real_latents(LatentCodec(kl(), 1), data.validation, fingerprint="", flip=True)
        for data in (digits, stored(digits))
    ]
    index, flipped = torch.tensor([5, 0, 77]), torch.tensor([True, False, False])
    assert torch.equal(found[0].x0(index, flipped), found[1].x0(index, flipped))


@pytest.mark.slow
def test_a_trained_generator_and_its_modes_are_those_of_memory(digits: RealData) -> None:
    config = FinetuneConfig(model=MODEL, base_steps=2, minimax_steps=1, batch_size=10)
    sets = []
    for data in (digits, stored(digits)):
        generator, _ = finetune(data, config)
        sets.append(sample_set(generator, 1, MODES, data=data))
    assert torch.equal(sets[0].images, sets[1].images)


def test_prototypes_are_read_class_by_class() -> None:
    data = stored(noise(3 * MOST, channels=1))
    generator = build_generator(MODEL, data.classes, data.image_size, 0, codec=PixelCodec(1))
    made = sample_set(generator, 1, MODES, data=data)
    assert len(made.images) == 4
