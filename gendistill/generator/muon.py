"""AdamW with orthogonalised updates of hidden matrices: Muon (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982).

For a matrix W (m,n), a convolution as (out, in * height * width), with gradient G, momentum M and rate r:

    M <- b M + G,    O = U V^T of G + b M = U S V^T,    W <- W - r (0.2 sqrt(max(m, n)) O + weight_decay W),    b = 0.95

The factor gives an update the root mean square of AdamW's (2502.16982, section 2.2), so both take the same rates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
UPDATE_SIZE = 0.2  # root mean square of AdamW's updates
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al.: singular values come to lie between 0.7 and 1.2
ITERATIONS = 5
HIDDEN = re.compile(r"(^|\.)(transformer_blocks|down_blocks|mid_block|up_blocks)\.")
EMBEDDING = re.compile(r"\.emb\.|time_emb_proj")


def hidden_matrices(parameters: Mapping[str, Tensor]) -> set[str]:
    """Names of the matrices and convolutions in the blocks of a UNet or DiT, but for embeddings of time and class."""
    return {k for k, p in parameters.items() if p.ndim > 1 and HIDDEN.search(k) and not EMBEDDING.search(k)}


@torch.no_grad()
def orthogonalise(matrices: Tensor) -> Tensor:
    """Near U V^T of each matrix U S V^T (...,m,n), by Newton-Schulz iterations of degree 5, in the dtype given.

    X <- P X with P = a I + b A + c A^2 and A = X X^T, which moves every singular value to between 0.7 and 1.2. All P
    commute with A, so the loop needs only matrices of the shorter side: A <- P^2 A, and at the end the product of all P
    meets X once.
    """
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    x = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    gram, eye = x @ x.mT, torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    product = eye.expand_as(gram)
    for _ in range(ITERATIONS):
        p = a * eye + b * gram + c * gram @ gram
        product, gram = p @ product, p @ (p @ gram)
    x = product @ x
    return x if wide is matrices else x.mT


class Muon(torch.optim.AdamW):
    """Muon for the hidden matrices, AdamW for all other parameters, at one learning rate.

    Where we differ from torch.optim.Muon: it takes convolutions, all matrices of one shape are one batch, and it
    iterates in fp32. In bf16 gradients that round differently, as those of micro-batches, would give other weights.

    Args:
        parameters: By name.
        lr: Learning rate of both.
        weight_decay: Decoupled weight decay of both.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], lr: float, weight_decay: float) -> None:
        hidden = hidden_matrices(parameters)
        groups = [
            {"params": [p for k, p in parameters.items() if (k in hidden) is orthogonal], "orthogonal": orthogonal}
            for orthogonal in (True, False)
        ]
        super().__init__([group for group in groups if group["params"]], lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure else None
        groups = [group for group in self.param_groups if group["orthogonal"]]
        gradients = [(p, p.grad) for group in groups for p in group["params"] if p.grad is not None]
        for parameter, _ in gradients:
            parameter.grad = None  # AdamW leaves them out
        super().step()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for group in groups:
            self._orthogonal_step(group)
        return loss

    def _orthogonal_step(self, group: Mapping[str, Any]) -> None:
        shapes: dict[tuple[int, ...], list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                shapes.setdefault(tuple(parameter.shape), []).append(parameter)
        for parameters in shapes.values():
            update = orthogonalise(torch.stack([self._momentum(p) for p in parameters]))
            size = UPDATE_SIZE * math.sqrt(max(update.shape[1:]))
            for parameter, one in zip(parameters, update, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(one.view_as(parameter), alpha=-group["lr"] * size)

    def _momentum(self, parameter: Tensor) -> Tensor:
        """G + b M (m,n) after M <- b M + G."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}  # AdamW looks for the step
        state["step"] += 1
        state["momentum"].mul_(MOMENTUM).add_(gradient)
        return gradient.add(state["momentum"], alpha=MOMENTUM).flatten(1)
