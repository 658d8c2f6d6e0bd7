"""Prototypes: k-means centres by class, in the order of their populations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from gendistill.config import DataConfig, ModelConfig, Prototypes, SampleConfig, UNet
from gendistill.data.dataset import RealData, Split
from gendistill.data.sources import load_data
from gendistill.errors import ConfigError
from gendistill.generator.batch_source import PixelLatents
from gendistill.generator.codec import LatentCodec
from gendistill.generator.generator import build_generator
from gendistill.generator.latent_cache import real_latents
from gendistill.generator.surrogate_sets import _clusters, prototypes
from tests.generator.autoencoders import kl

NAMES = ("cat", "dog")


def spread(points: np.ndarray, centres: np.ndarray) -> float:
    """Mean squared distance to the nearest centre."""
    return float(((points[:, None] - centres[None]) ** 2).sum(-1).min(1).mean())


def of_class(data: RealData, number: int) -> np.ndarray:
    """Pixels (n,D) in [-1, 1]."""
    return data.train.images[data.train.labels == number].flatten(1).numpy() / 127.5 - 1


def grey(values: list[list[int]]) -> PixelLatents:
    """Images of 2 x 2 equal pixels, values by class."""
    flat = torch.tensor([v for row in values for v in row], dtype=torch.uint8)
    labels = torch.tensor([c for c, row in enumerate(values) for _ in row])
    return PixelLatents(Split(flat.view(-1, 1, 1, 1).expand(-1, 1, 2, 2), labels))


def test_centres_are_the_means_of_their_clusters_by_population_and_then_by_first_image() -> None:
    latents = grey([[0, 0, 0, 255, 255, 128], [10, 20, 200, 210, 220, 215]])
    found = prototypes(latents, NAMES, 2, seed=0).centres
    assert found.shape == (2, 2, 1, 2, 2)
    assert found.dtype == torch.float32
    pixels = (found[..., 0, 0, 0] + 1) * 127.5
    torch.testing.assert_close(pixels, torch.tensor([[0.0, (2 * 255 + 128) / 3], [211.25, 15.0]]))
    masses = prototypes(latents, NAMES, 2, seed=0).masses
    torch.testing.assert_close(masses, torch.tensor([[1 / 2, 1 / 2], [4 / 6, 2 / 6]]))


def test_digits_are_clustered_as_well_as_by_plain_kmeans(digits: RealData) -> None:
    found = prototypes(PixelLatents(digits.train), digits.classes, 5, seed=0).centres
    for number in (0, 8):
        points, centres = of_class(digits, number), found[number].flatten(1).numpy()
        plain = KMeans(5, n_init=4, random_state=0).fit(points).cluster_centers_
        assert spread(points, centres) < 1.01 * spread(points, plain)
        near = ((points[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
        population = np.bincount(near, minlength=5)
        assert (np.diff(population) <= 0).all()
        np.testing.assert_allclose(centres, [points[near == j].mean(0) for j in range(5)], atol=1e-5)


def test_principal_components_cost_little_spread() -> None:
    rng = np.random.default_rng(0)
    blobs = rng.uniform(60, 195, (6, 3 * 16 * 16))
    pixels = (blobs[rng.integers(6, size=300)] + rng.normal(0, 25, (300, 3 * 16 * 16))).clip(0, 255)
    split = Split(torch.from_numpy(pixels).to(torch.uint8).view(-1, 3, 16, 16), torch.zeros(300, dtype=torch.long))
    points = split.images.flatten(1).numpy() / 127.5 - 1
    centres = prototypes(PixelLatents(split), ("blob",), 6, seed=0).centres[0].flatten(1).numpy()
    plain = KMeans(6, n_init=4, random_state=0).fit(points).cluster_centers_
    assert spread(points, centres) < 1.01 * spread(points, plain)


def test_the_seed_alone_decides(digits: RealData) -> None:
    latents = PixelLatents(digits.train)
    one, again, other = (prototypes(latents, digits.classes, 4, seed).centres for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    with threadpool_limits(2):
        assert torch.equal(prototypes(latents, digits.classes, 4, 0).centres, one)


def test_latents_are_their_means(digits: RealData) -> None:
    keep = torch.cat([digits.train.of_class(c)[:6] for c in range(2)])
    split = Split(digits.train.images[keep].repeat_interleave(2, 2).repeat_interleave(2, 3), digits.train.labels[keep])
    codec = LatentCodec(kl(), 1)
    latents = real_latents(codec, split, fingerprint="x", flip=True)
    found = prototypes(latents, NAMES, 6, seed=0).centres  # as many modes as images: each centre is one of them
    mean = codec.encode(split.images.float() / 127.5 - 1).mean
    nearest = torch.cdist(found[1].flatten(1), mean[6:].flatten(1)).min(0).values
    assert nearest.max() < 1e-4


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_clusters_of_a_class_do_not_depend_on_the_others() -> None:
    """Latents do, in their last bits, on what is encoded beside them."""
    data = load_data(DataConfig(max_per_class=12, image_size=64))
    model = ModelConfig(architecture=UNet(block_out_channels=(4,), norm_num_groups=2))
    generator = build_generator(model, data.classes, 64, 0, codec=LatentCodec(kl(), 1))
    config = SampleConfig(start=Prototypes(modes=3))
    together = _clusters(generator, config, data, 0)
    for names in (("3",), ("0", "3")):
        found = _clusters(generator.map_classes(names), config, data, 0)
        assert torch.equal(found.centres[-1], together.centres[3])
        assert torch.equal(found.masses[-1], together.masses[3])


def test_images_that_repeat_still_give_every_mode() -> None:
    found = prototypes(grey([[0, 0, 0, 255]]), ("cat",), 3, seed=0).centres
    assert found.isfinite().all()
    assert set(found.flatten().tolist()) == {-1.0, 1.0}
    masses = prototypes(grey([[0, 0, 0, 255]]), ("cat",), 3, seed=0).masses
    assert (masses > 0).all()
    assert masses.sum() == pytest.approx(1)


def test_too_few_images_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"sample\.modes is 3, but class 'dog' has 2 real image\(s\)"):
        prototypes(grey([[0, 1, 2], [3, 4]]), NAMES, 3, seed=0)
