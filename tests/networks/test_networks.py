"""Networks by name: shapes, sizes, seeds, and the field's ResNets against timm's and against formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill.errors import ConfigError
from gendistill.networks.classifiers import Block, ResNet, default_depth
from gendistill.networks.factories import batch_norm_layers, build_network
from gendistill.registry import NETWORKS

NAMES = [name for name in NETWORKS.names() if not name.startswith("timm:")]
RESNETS = [name for name in NAMES if name.startswith("resnet")]
LIST = "convnet, convnet_bn, resnet10, resnet10_bn, resnet18, resnet18_bn, resnetap10, resnetap10_bn, timm:NAME"


def some_images(size: int, channels: int = 3, count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def weights(network: nn.Module) -> Tensor:
    return torch.cat([v.flatten().double() for v in network.state_dict().values()])


def parameters(name: str, size: int) -> int:
    with torch.device("meta"):
        network = build_network(name, channels=3, image_size=size, classes=10)
    return sum(p.numel() for p in network.parameters())


# all


@pytest.mark.parametrize("name", [*NAMES, "timm:resnet10t"])
def test_same_seed_same_network_and_the_global_generator_stays(name):
    before = torch.get_rng_state()
    first, second, other = (
        weights(build_network(name, channels=1, image_size=16, classes=3, width=8, seed=s)) for s in (4, 4, 5)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", [*NAMES, "timm:resnet10t", "timm:densenet121", "timm:vit_tiny_patch16_224"])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_classify_of_features_gives_the_logits(name, channels, size):
    network = build_network(name, channels=channels, image_size=size, classes=3, width=8).eval()
    with torch.no_grad():
        images = some_images(size, channels)
        features, logits = network.features(images), network(images)
        assert torch.equal(network.classify(features), logits)
    assert features.shape[0] == 2
    assert features.dim() == 2
    assert logits.shape == (2, 3)
    assert not torch.allclose(features[0], features[1], atol=1e-3)


@pytest.mark.parametrize(("name", "expected"), [("resnet", LIST), ("", LIST), ("resnet10_in", LIST)])
def test_unknown_names_are_refused_with_the_choices(name, expected):
    with pytest.raises(ConfigError) as refused:
        build_network(name, channels=1, image_size=16, classes=3)
    assert str(refused.value).startswith(f"network is {name!r}; expected one of {expected}.")


# ConvNets


def test_a_depth_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"depth 4 .* 1 to 3"):
        build_network("convnet", channels=1, image_size=8, classes=3, depth=4)


@pytest.mark.parametrize(("size", "depth"), [(8, 2), (28, 3), (32, 3), (64, 4), (224, 6), (256, 6)])
def test_default_depth_is_the_fields_usual_one(size, depth):
    assert default_depth(size) == depth


def test_a_convnet_of_the_field_has_its_parameters_under_the_names_that_saved_teachers_have():
    network = build_network("convnet", channels=3, image_size=32, classes=10)
    layers = [f"body.{4 * level + place}" for level in range(3) for place in (0, 1)]
    assert list(network.state_dict()) == [f"{x}.{kind}" for x in (*layers, "head") for kind in ("weight", "bias")]
    assert sum(p.numel() for p in network.parameters()) == 320_010


# ResNets


@pytest.mark.parametrize(
    ("name", "count"), [("resnet10", 4_903_242), ("resnet18", 11_173_962), ("resnetap10", 4_903_242)]
)
@pytest.mark.parametrize("norm", ["", "_bn"])
@pytest.mark.parametrize(("size", "more"), [(8, 0), (32, 0), (128, 0), (224, 7680)])
def test_resnets_have_the_parameters_that_their_text_says(name, count, norm, size, more):
    assert parameters(name + norm, size) == count + more


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 224])
def test_resnet18_is_timms_with_the_same_weights(size):
    ours, theirs = (
        build_network(name, channels=3, image_size=size, classes=5) for name in ("resnet18_bn", "timm:resnet18")
    )
    assert len(ours.state_dict()) == len(theirs.state_dict())
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = some_images(size)
    for training in (True, False):  # the batch's statistics, then those it left behind
        with torch.no_grad():
            torch.testing.assert_close(ours.train(training)(images), theirs.train(training)(images))


def test_resnetap_pools_where_resnets_stride():
    network = build_network("resnetap10", channels=3, image_size=224, classes=3)
    kinds = {type(m) for m in network.modules()}
    assert not kinds & {nn.MaxPool2d, nn.BatchNorm2d}
    assert {m.stride for m in network.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}


def test_a_halving_block_of_resnetap_is_its_formula():
    block = Block(4, 6, True, lambda channels: nn.GroupNorm(channels, channels), average_pooling=True)
    images = some_images(10, channels=4)
    one, two, side = (block.get_parameter(f"{name}.weight") for name in ("branch.0", "branch.4", "shortcut.0"))
    norm = F.instance_norm
    branch = norm(F.conv2d(F.avg_pool2d(norm(F.conv2d(images, one, padding=1)).relu(), 2), two, padding=1))
    expected = (branch + norm(F.avg_pool2d(F.conv2d(images, side), 2))).relu()
    torch.testing.assert_close(block(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet10", "resnetap10"])
@pytest.mark.parametrize(
    ("size", "stem", "last"), [(8, 8, 4), (16, 16, 4), (32, 32, 4), (64, 64, 8), (96, 48, 6), (224, 56, 7)]
)
def test_stems_and_stages_keep_the_positions_they_should(name, size, stem, last):
    with torch.device("meta"):
        network = build_network(name, channels=1, image_size=size, classes=2)
        blocks = [place for place, layer in enumerate(network.body) if isinstance(layer, Block)]
        images = torch.zeros(1, 1, size, size)
        assert network.body[: blocks[0]](images).shape[-2:] == (stem, stem)
        assert network.body[: blocks[-1] + 1](images).shape[-2:] == (last, last)


@pytest.mark.parametrize("average_pooling", [False, True])
@pytest.mark.parametrize("size", [3, 4, 5, 7, 8, 12, 28])
def test_instance_norm_still_sees_the_image_however_small(size, average_pooling):
    """Where the last maps were a single position, all images would have the same features."""
    network = ResNet(channels=1, image_size=size, classes=3, width=8, average_pooling=average_pooling)
    with torch.no_grad():
        assert network.features(some_images(size, 1, count=8)).std(0).mean() > 0.01


def test_images_too_small_for_instance_norm_are_refused():
    with pytest.raises(ConfigError, match="2 px images; expected 3 px or more"):
        build_network("resnet10", channels=1, image_size=2, classes=3)


@pytest.mark.parametrize("name", ["resnet10", "resnetap10", "resnet10_bn"])
def test_only_batch_norm_in_training_lets_images_depend_on_one_another(name):
    network, images = build_network(name, channels=1, image_size=8, classes=3), some_images(8, 1, count=3)
    with torch.no_grad():
        alone, together = network.eval()(images[:1]), network(images)
        learning = network.train()(images)
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)
    assert torch.allclose(learning, together, rtol=1e-4, atol=1e-5) is (name != "resnet10_bn")


# timm


def test_timm_logits_are_those_of_timms_own_forward():
    network = build_network("timm:resnet10t", channels=3, image_size=64, classes=3).eval()
    images = some_images(64)
    torch.testing.assert_close(network(images), network.net(images))


def test_two_heads_of_a_timm_network_classify_as_timm_does():
    network = build_network("timm:levit_128s", channels=1, image_size=224, classes=3).eval()
    images = some_images(224, 1)
    with torch.no_grad():
        torch.testing.assert_close(network(images), network.net(images))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "last"),
    [
        ("resnet10t", 32, 4), ("resnet10t", 64, 2), ("densenet121", 8, 1), ("densenet121", 32, 4),
        ("densenet121", 64, 2), ("densenetblur121d", 32, 4),
    ],
)  # fmt: skip
def test_timm_keeps_the_resolution_of_images_below_64_px_in_its_stem(name, size, last):
    with torch.device("meta"):
        network = build_network(f"timm:{name}", channels=1, image_size=size, classes=3)
        assert network.net.forward_features(torch.zeros(2, 1, size, size)).shape[-1] == last


def test_a_densenet_keeps_its_batch_norm_layers_at_any_size():
    with torch.device("meta"):
        found = [build_network("timm:densenet121", channels=3, image_size=size, classes=3) for size in (32, 64)]
    assert [len(batch_norm_layers(network)) for network in found] == [121, 121]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "patch"),
    [
        ("vit_tiny_patch16_224", 8, 1), ("vit_tiny_patch16_224", 28, 2), ("vit_tiny_patch16_224", 32, 4),
        ("vit_tiny_patch16_224", 64, 8), ("vit_tiny_patch16_224", 224, 16), ("vit_tiny_patch16_224", 256, 16),
        ("deit_tiny_distilled_patch16_224", 32, 4), ("swin_tiny_patch4_window7_224", 32, 4),
    ],
)  # fmt: skip
def test_transformers_are_made_for_the_size_in_patches_that_fit_it(name, size, patch):
    with torch.device("meta"):
        network = build_network(f"timm:{name}", channels=1, image_size=size, classes=3)
    assert network.net.patch_embed.patch_size == (patch, patch)
    assert network.net.patch_embed.grid_size == (size // patch, size // patch)
    assert network.training


@pytest.mark.parametrize("name", ["timm:levit_128s", "timm:nest_tiny", "timm:inception_v4"])
def test_a_network_that_cannot_take_the_size_is_refused(name):
    with pytest.raises(ConfigError, match=rf"{name} cannot take 28 px images with 3 channel\(s\): .+"):
        build_network(name, channels=3, image_size=28, classes=3)


def test_unknown_timm_names_are_refused_with_names_like_them():
    with pytest.raises(ConfigError, match="resnet10t"):
        build_network("timm:resnet10", channels=1, image_size=16, classes=3)


@pytest.mark.parametrize(
    ("channels", "size", "features"), [(1, 28, 2048), (3, 28, 1152), (1, 32, 2048), (3, 32, 2048), (1, 8, 512)]
)
def test_a_convnet_pads_grey_images_of_28_px_to_the_maps_of_32_px_as_released(channels, size, features):
    for name in ("convnet", "convnet_bn"):
        network = build_network(name, channels=channels, image_size=size, classes=10)
        assert network.features(torch.zeros(2, channels, size, size)).shape == (2, features)
        assert network.body[0].padding == ((3, 3) if (channels, size) == (1, 28) else (1, 1))
