"""A minimax training step organised as the released code's: the reference of the speed benchmark, not used elsewhere.

fp32 and eager, every image encoded in every step, per-class Python lists that are concatenated for each class, boolean
masks, host syncs for the log, and a running average over all parameters. Written from shared facts about that code
(docs/differences.md), not from the code.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill.generator.codec import Codec
from gendistill.objectives import diffusion


class ReleasedLoop:
    """``step(images, labels)`` trains ``parameters`` of ``network`` once; returns the logged floats."""

    def __init__(
        self,
        network: nn.Module,
        parameters: Iterable[nn.Parameter],
        codec: Codec,
        alphas: Tensor,
        null_class: int,
        memory: int = 64,
    ) -> None:
        self.network, self.codec, self.alphas, self.null_class, self.memory = network, codec, alphas, null_class, memory
        self.average = copy.deepcopy(network)
        self.optimizer = torch.optim.AdamW(list(parameters), lr=1e-3, weight_decay=0)
        self.real: dict[int, list[Tensor]] = {}
        self.generated: dict[int, list[Tensor]] = {}

    def step(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        moments = self.codec.encode(images)
        x0 = moments.mean if moments.std is None else moments.mean + moments.std * torch.randn_like(moments.std)
        t = torch.randint(len(self.alphas), (len(x0),))
        eps, alpha_bar = torch.randn_like(x0), self.alphas[t]
        xt = diffusion.add_noise(x0, eps, alpha_bar)
        condition = labels.where(torch.rand(len(labels)) >= 0.1, self.null_class)
        output = self.network(xt, t, class_labels=condition).sample
        predicted, variance = diffusion.split_prediction(output, x0.shape[1])
        loss = diffusion.denoising_loss(predicted, eps)
        if variance is not None:
            loss = loss + diffusion.variational_bound(x0, xt, predicted, variance, t, self.alphas).mean()
        z = diffusion.predicted_x0(predicted, xt, alpha_bar, "epsilon").flatten(1)
        near, apart = self.criteria(x0.flatten(1), z, labels)
        total = loss + 0.002 * near + 0.008 * apart
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.mul_(0.9999).add_(now.detach(), alpha=1 - 0.9999)
        return {"loss": loss.item(), "near": float(near), "apart": float(apart), "total": total.item()}

    def criteria(self, x0: Tensor, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Both criteria with one extreme pair a class, and then the memories, class by class."""
        near, apart, classes = z.new_zeros(()), z.new_zeros(()), labels.unique().tolist()
        for c in classes:
            own = z[labels == c]
            if self.real.get(c):
                near = near + 1 - F.cosine_similarity(own[:, None], torch.stack(self.real[c])[None], dim=-1).min()
            if self.generated.get(c):
                apart = apart + F.cosine_similarity(own[:, None], torch.stack(self.generated[c])[None], dim=-1).max()
            for store, values in ((self.real, x0), (self.generated, z)):
                kept = store.setdefault(c, [])
                kept += list(values[labels == c].detach())
                del kept[: -self.memory]
        return near / len(classes), apart / len(classes)
