"""One-pass class statistics against two passes in float64."""

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from gendistill.data.images import to_float
from gendistill.data.real import Split
from gendistill.errors import ArtifactError
from gendistill.networks.registry import batch_norm_layers, build_network
from gendistill.networks.statistics import ClassStatistics, batch_norm_inputs, collect_statistics

CLASSES = 4
LABELS = torch.tensor([0, 2, 2, 0, 1, 2, 2, 2, 0, 2, 2, 1, 2])  # ragged; class 3 is absent


def some_images(seed=0):
    """Grey images whose brightness depends on the class, so that batch means differ."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 100, (len(LABELS), 1, 16, 16), generator=rng)
    return Split((noise + 50 * LABELS[:, None, None, None]).to(torch.uint8), LABELS)


def small(name):
    return build_network(name, channels=1, image_size=16, classes=CLASSES, width=8)


def in_one_go(network, split):
    """{layer: its input for the whole split} and the features, straight from forward hooks."""
    seen = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, i[0].double().numpy()))
    with torch.no_grad():
        features = network.eval().features(to_float(split.images))
    return seen, features


@pytest.mark.parametrize("batch_size", [5, 13, 100, 1])
@pytest.mark.parametrize("name", ["convnet_bn", "timm:resnet10t"])
def test_moments_equal_two_passes_in_float64(name, batch_size):
    split = some_images()
    found = collect_statistics(small(name), split, CLASSES, batch_size)
    inputs, features = in_one_go(small(name), split)
    assert set(found.means) == set(found.variances) == set(inputs)
    for layer, value in inputs.items():
        for c in range(3):
            own = value[LABELS.numpy() == c]
            np.testing.assert_allclose(found.means[layer][c], own.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(found.variances[layer][c], own.var((0, 2, 3)), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.labels, LABELS)


@pytest.mark.parametrize(("image_size", "layers"), [(64, 14), (16, 12)])  # the stem of small images has two fewer
def test_resnet10t_gives_all_its_batch_norm_layers(image_size, layers):
    network = build_network("timm:resnet10t", channels=1, image_size=image_size, classes=2)
    with batch_norm_inputs(network) as seen:
        network(torch.zeros(2, 1, image_size, image_size))
    assert seen.keys() == batch_norm_layers(network).keys()
    assert len(seen) == layers


def test_a_network_without_batch_norm_gives_features_alone():
    found = collect_statistics(small("convnet"), some_images(), CLASSES)
    assert found.means == found.variances == {}
    assert len(found.features) == len(LABELS)


def test_collecting_leaves_running_statistics_as_they_were():
    network = small("convnet_bn")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    collect_statistics(network, some_images(), CLASSES)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_hooks_are_gone_after_the_block():
    network = small("convnet_bn")
    with batch_norm_inputs(network) as seen:
        network(torch.zeros(2, 1, 16, 16))
    first = dict(seen)
    network(torch.ones(2, 1, 16, 16))
    assert len(first) == 2
    assert all(seen[k] is v for k, v in first.items())


def test_batch_norm_inputs_carry_a_gradient_to_the_images():
    images = torch.zeros(2, 1, 16, 16, requires_grad=True)
    network = small("convnet_bn").eval()
    with batch_norm_inputs(network) as seen:
        network(images)
        sum(v.square().sum() for v in seen.values()).backward()
    assert images.grad.abs().sum() > 0


def test_feature_variance_by_hand():
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, 5.0]])
    found = ClassStatistics(features, torch.tensor([0, 0, 1, 1]), {}, {})
    assert found.feature_variance().tolist() == [1.0, 4.0]
    assert torch.equal(found.of_class(1), features[2:])


def test_statistics_survive_a_file(tmp_path):
    found = collect_statistics(small("convnet_bn"), some_images(), CLASSES)
    found.save(tmp_path / "statistics.safetensors")
    again = ClassStatistics.load(tmp_path / "statistics.safetensors")
    assert torch.equal(again.features, found.features)
    assert torch.equal(again.labels, found.labels)
    for kind in ("means", "variances"):
        before, after = getattr(found, kind), getattr(again, kind)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"not safetensors", save({"x": torch.zeros(1)})],
    ids=["missing", "empty", "damaged", "other"],
)
def test_unreadable_statistics_are_an_artifact_error(tmp_path, content):
    path = tmp_path / "statistics.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"statistics\.safetensors"):
        ClassStatistics.load(path)
