"""Batches for the matching objectives, and plain autograd references with its double backward."""

import torch
from torch import nn
from torch.nn import functional as F

from gendistill.networks.factories import build_network


def network_of(name, *, seed=0, size=8, width=6, depth=2, dtype=torch.float64):
    network = build_network(name, channels=3, image_size=size, classes=4, width=width, depth=depth, seed=seed)
    return network.to(dtype)


def batches(real_counts, view_counts, *, size=8, seed=0, dtype=torch.float64):
    """Real images and views of each class that differ in mean, in [-1, 1] or about."""
    rng = torch.Generator().manual_seed(seed)

    def draw(count, shift):
        return (torch.randn(count, 3, size, size, generator=rng, dtype=dtype) + shift).mul(0.5)

    real = [draw(count, 0.3 * k) for k, count in enumerate(real_counts)]
    return real, [draw(count, -0.2 * k).requires_grad_() for k, count in enumerate(view_counts)]


def matching_reference(network, real, views, labels, names, distance, feature_mean=0.0):
    """Losses (K,) by create_graph=True, class by class, on the network as it is (training mode for batch norm)."""
    named = dict(network.named_parameters())
    losses = []
    for r, v, label in zip(real, views, labels, strict=True):
        (wanted, features), (found, own) = (_gradients(network, x, label, [named[n] for n in names]) for x in (r, v))
        loss = distance([g.detach() for g in wanted], found)
        losses.append(loss + feature_mean * (features.detach().mean(0) - own.mean(0)).square().sum())
    return torch.stack(losses)


def _gradients(network, images, label, parameters):
    features = network.features(images)
    loss = F.cross_entropy(network.classify(features), torch.full((len(images),), label))
    return torch.autograd.grad(loss, parameters, create_graph=True), features


def squared(wanted, found):
    return sum((a - b).square().sum() for a, b in zip(wanted, found, strict=True))


def absolute(wanted, found):
    return sum((a - b).abs().sum() for a, b in zip(wanted, found, strict=True))


def row_cosine(wanted, found):
    total = torch.zeros(())
    for a, b in zip(wanted, found, strict=True):
        for row, other in zip(a.flatten(1), b.flatten(1), strict=True):
            total = total + 1 - row @ other / (row.norm() * other.norm() + 1e-6)
    return total


def weights(network, head=()):
    """Names of the parameters of 2 or more dimensions but for ``head``."""
    return [name for name, p in network.named_parameters() if p.dim() >= 2 and name not in head]


def losses_of(objective, network, real, views, labels, accuracy=None):
    """Losses (K,) of one set of views, as an engine asks for them."""
    return objective.prepared(network, real, labels).losses(views, accuracy)


def values_and_gradients(losses, views):
    return losses.detach(), torch.autograd.grad(losses.sum(), views)


def image_cosine(a, b):
    return F.cosine_similarity(torch.cat([x.flatten() for x in a]), torch.cat([x.flatten() for x in b]), dim=0).item()


class WithDropout(nn.Module):
    """A network of ours with dropout before its classifier."""

    def __init__(self, network):
        super().__init__()
        self.network, self.dropout = network, nn.Dropout(0.5)

    def features(self, images):
        return self.dropout(self.network.features(images))

    def classify(self, features):
        return self.network.classify(features)


class Scaled(nn.Module):
    """A layer whose setting shows neither in its text nor in its tensors."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, images):
        return (self.factor * images).tanh()
