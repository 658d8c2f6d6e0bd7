"""Matching steps organised as the released codes': the reference of the speed benchmark, not used elsewhere.

fp32 and eager, class by class, real images in memory as floats, nn.AvgPool2d:

- DM: the frozen network sees the 256 real images of a class at once, then its synthetic ones; one backward pass of the
  summed losses of all classes.
- IDC: gradients of every parameter, of the real images and, through ``create_graph``, of the views; the weights of
  three and more dimensions are compared; a backward pass that also reaches the parameters, and a step of one optimiser
  over all images after each class. DREAM: k-means on all features of all images of a class every ``interval`` steps.
- IDM: one network of the queue, in evaluation mode and not frozen; views go through it twice, for features and for
  logits; a step after each class.

The real and the synthetic images of a class share one augmentation draw. k-means is scikit-learn's, because the
released code's is for GPUs. Written from facts about the codes, not from the codes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill.data.pixels import to_float
from gendistill.matching.engine import Matcher
from gendistill.matching.gradient import GradientMatching
from gendistill.matching.selection import RepresentativeSelection, embed
from gendistill.networks.classifiers import AvgPool2x2
from gendistill.objectives.matching import class_aware_cross_entropy, gradient_distance, mean_feature_distance


def with_plain_pooling(network: nn.Module) -> nn.Module:
    """The network with the layer of PyTorch wherever it has ours."""
    for module in list(network.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, AvgPool2x2):
                setattr(module, name, nn.AvgPool2d(2))
    return network


class ReleasedMatching:
    """The loop over what ``matcher`` is made of: its start, networks, their training, random picks and augmentations.

    DM sums the losses of all classes and freezes its networks; IDC and IDM step after each class and do not. Networks
    that learn from the surrogate (DC, DSA) are not for this loop. ``clustering`` counts the processor seconds of it.
    """

    def __init__(self, matcher: Matcher) -> None:
        assert matcher.supply.shared
        self.clustering = 0.0
        self.matcher, self.plan, self.stored = matcher, matcher.plan, matcher.sets[0]
        self.images = self.stored.images.clone().requires_grad_()
        self.optimizer = torch.optim.SGD([self.images], lr=self.plan.learning_rates[0], momentum=self.plan.momentum)
        self.picks: dict[int, Tensor] = {}
        self.real = to_float(matcher.real.images)

    def run(self) -> Iterator[Tensor]:
        """Whole inner steps, network training included; yields each one's mean loss over the classes."""
        for iteration in range(self.plan.iterations):
            self.matcher.iteration = iteration
            network = with_plain_pooling(self.matcher.supply.network(iteration)).requires_grad_(self.plan.by_class)
            for inner in range(self.plan.inner_steps):
                loss, last = self._step(network, inner), inner == self.plan.inner_steps - 1
                self.matcher.supply.learn(iteration, inner, last, [self.stored])
                yield loss

    def _step(self, network: nn.Module, inner: int) -> Tensor:
        losses, selection = [], self.matcher.selection
        self._pick(network, inner)
        for label in range(self.stored.classes):
            if isinstance(selection, RepresentativeSelection) and inner % selection.interval == 0:
                self.picks[label] = self._clustered(network, label)
            draw = self.matcher._draw(inner, label)
            real = self.real[self.picks[label]]
            own = self.images.split(self.stored.ipc)[label]
            views = self.matcher._views(self.stored.decoded(own), label, inner)
            if draw is not None:
                real, views = draw.apply(real), draw.apply(views)
            gradients = isinstance(self.matcher.objective, GradientMatching)
            loss = (self._of_gradients if gradients else self._of_features)(network, real, views, label)
            losses.append(loss)
            if self.plan.by_class:
                self._descend(loss)
        if not self.plan.by_class:
            self._descend(torch.stack(losses).sum())
        return torch.stack(losses).detach().mean()

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _pick(self, network: nn.Module, inner: int) -> None:
        if not isinstance(self.matcher.selection, RepresentativeSelection):
            self.picks = dict(enumerate(self.matcher.selection.picks(network, *self.matcher.moment(inner))))

    def _clustered(self, network: nn.Module, label: int) -> Tensor:
        from sklearn.cluster import KMeans

        begun, real, count = time.process_time(), self.matcher.real, self.matcher.selection.batch_size
        index = real.of_class(label)
        features = embed(network, real, index)
        centres = torch.from_numpy(KMeans(count, n_init=1, random_state=0).fit(features.numpy()).cluster_centers_)
        nearest = torch.cdist(centres, features).argmin(1)
        self.clustering += time.process_time() - begun
        return index[nearest.to(index.device)]

    def _of_gradients(self, network: nn.Module, real: Tensor, views: Tensor, label: int) -> Tensor:
        """IDC's: all parameters are asked for, the weights but for the classifier's are compared."""
        names, parameters = zip(*network.named_parameters(), strict=True)
        compared = [i for i, p in enumerate(parameters) if p.dim() >= 2 and not names[i].startswith("head")]

        def gradients(images: Tensor, graph: bool) -> list[Tensor]:
            loss = F.cross_entropy(network(images), torch.full((len(images),), label, device=images.device))
            found = torch.autograd.grad(loss, parameters, create_graph=graph)
            return [found[i] for i in compared]

        wanted = [g.detach().clone() for g in gradients(real, False)]
        return gradient_distance(wanted, gradients(views, True), self.matcher.objective.distance)

    def _of_features(self, network: nn.Module, real: Tensor, views: Tensor, label: int) -> Tensor:
        """The views go through the network once for their features and, with IDM's term, again for their logits."""
        wanted = network.features(real).detach()
        loss, weight = mean_feature_distance(wanted, network.features(views)), self.matcher.objective.ce_weight
        if not weight:
            return loss
        labels = torch.full((len(views),), label, device=views.device)
        return loss + class_aware_cross_entropy(network(views), labels, self.matcher.supply.accuracy(), weight)
