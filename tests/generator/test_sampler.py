"""An image depends on (seed, class, index) alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gendistill.config import ModelConfig
from gendistill.errors import ConfigError
from gendistill.generator.generator import Generator, build_generator
from gendistill.generator.sampler import SCHEDULERS, Request, predict, requests_for, sample


@pytest.fixture(scope="module")
def generator() -> Generator:
    config = ModelConfig(block_out_channels=(16, 32), norm_num_groups=8)
    return build_generator(config, ("a", "b", "c"), channels=1, image_size=8, seed=0)


def images(generator: Generator, requests: list[Request], **options: object) -> dict[Request, torch.Tensor]:
    made: dict[Request, torch.Tensor] = {}
    for batch, values in sample(generator, requests, num_inference_steps=5, **options):  # type: ignore[arg-type]
        made |= dict(zip(batch, values, strict=True))
    return made


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_images_do_not_depend_on_order_company_or_batch_size(generator: Generator, scheduler: str) -> None:
    whole = images(generator, requests_for(3, 4), scheduler=scheduler, batch_size=12)
    odd = images(generator, requests_for(3, 4)[::-1], scheduler=scheduler, batch_size=5)
    alone = images(generator, [Request(2, 3)], scheduler=scheduler, batch_size=7)
    assert all(torch.equal(whole[r], odd[r]) for r in whole)
    assert torch.equal(alone[Request(2, 3)], whole[Request(2, 3)])


def test_seed_class_and_index_each_change_the_image(generator: Generator) -> None:
    made = images(generator, [Request(0, 0), Request(0, 1), Request(1, 0)])
    assert len({tuple(v.flatten().tolist()) for v in made.values()}) == 3
    other = images(generator, [Request(0, 0)], seed=1)
    assert not torch.equal(other[Request(0, 0)], made[Request(0, 0)])


def test_guidance_one_is_the_plain_model_and_guidance_extrapolates(generator: Generator) -> None:
    x, t, labels = (
        torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor(500),
        torch.tensor([0, 2]),
    )
    with torch.no_grad():
        with_class = generator.unet(x, t, class_labels=labels).sample
        without = generator.unet(x, t, class_labels=torch.full((2,), generator.null_class)).sample
        guided = predict(generator, x, t, labels, 3.0)
    torch.testing.assert_close(predict(generator, x, t, labels, 1.0).detach(), with_class)
    torch.testing.assert_close(guided, without + 3 * (with_class - without), rtol=1e-4, atol=1e-5)


def test_unknown_scheduler_and_too_many_steps_are_refused(generator: Generator) -> None:
    with pytest.raises(ConfigError, match="expected one of"):
        next(sample(generator, [Request(0, 0)], scheduler="magic"))
    with pytest.raises(ConfigError, match="1 to 1000"):
        next(sample(generator, [Request(0, 0)], num_inference_steps=2000))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_saved_generator_samples_like_the_one_in_memory(generator: Generator, scheduler: str, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path)
    requests = requests_for(3, 1)
    one, other = (images(g, requests, scheduler=scheduler) for g in (generator, Generator.from_pretrained(tmp_path)))
    assert all(torch.equal(one[r], other[r]) for r in requests)
