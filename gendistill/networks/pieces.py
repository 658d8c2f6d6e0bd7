"""A batch in pieces whose activations stay in a CPU's caches: the gradients of the whole batch in less time and memory.

    d/d theta mean_B loss = sum over pieces p of  (B_p / B)  d/d theta mean_{B_p} loss

This holds wherever the loss of an image depends on no other image; batch norm that takes its statistics from the batch
keeps it whole. The pieces depend on the network and the images' size alone, so that every machine divides alike.

Legend: B images of a batch, B_p of them in piece p, C,H,W an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gendistill.networks.factories import batch_norm_layers

VALUES = 2**21  # of a piece's largest activation: 16 images of 32 px in a ConvNet of width 128, 8 MiB in fp32
COMPILED_VALUES = 2**23  # compiled passes write fewer activations, and each call costs more
PER_PARAMETER = 4  # activations that backward needs, for each parameter: a piece adds its gradients to all of them

BatchLoss = Callable[[Tensor, Tensor], Tensor]  # images (B,C,H,W), targets (B,) or (B,K) -> the mean loss

_fewest: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], dict[bool, int]]] = WeakKeyDictionary()


def backward_in_pieces(loss_of: BatchLoss, images: Tensor, targets: Tensor, rows: int, weight: float = 1.0) -> Tensor:
    """Add the gradients of ``weight`` times the mean loss of a batch to the parameters, piece by piece.

    Args:
        loss_of: The mean loss of some images and their targets.
        images: (B,C,H,W).
        targets: (B,) or (B,K).
        rows: Images of a piece, as ``piece_rows`` gives them; the last piece may have fewer.
        weight: Of the loss.

    Returns:
        The weighted loss of the batch, a scalar without graph.
    """
    total = torch.zeros((), device=images.device)
    for part, wanted in zip(images.split(rows), targets.split(rows), strict=True):
        loss = weight * (len(part) / len(images)) * loss_of(part, wanted)
        loss.backward()
        total = total + loss.detach()
    return total


def piece_rows(network: nn.Module, images: Tensor, *, compiled: bool = False) -> int:
    """Images of a piece of the batch ``images`` (B,C,H,W): B where the whole batch is best.

    That is on a GPU, where batch norm takes its statistics from the batch, and where B images are not twice as many as
    a piece needs: so many that its largest activation has ``VALUES``, and that all activations which backward needs are
    ``PER_PARAMETER`` times as many as the parameters. Eager pieces have equally many images, but for the last one.
    Compiled ones have exactly as many, since every other number would be compiled for itself.
    """
    count = len(images)
    if images.device.type != "cpu" or count < 2 or _takes_batch_statistics(network):
        return count
    fewest = _fewest_rows(network, images[:1])[compiled]
    if compiled:
        return next((rows for rows in range(fewest, count // 2 + 1) if count % rows == 0), count)
    return math.ceil(count / max(1, count // fewest))


def prediction_rows(network: nn.Module, image: Tensor, most: int) -> int:
    """Images of an eager pass without gradients on a CPU: ``most``, or as few as a piece has where that is half of it.

    Args:
        network: In evaluation mode, so that batch norm does not matter.
        image: One of its inputs, (1,C,H,W).
        most: At least 1.
    """
    fewest = _fewest_rows(network, image)[False]
    return fewest if 2 * fewest <= most else most


def _takes_batch_statistics(network: nn.Module) -> bool:
    """Whether a batch-norm layer, in its present mode, normalises by the mean and variance of a batch."""
    layers = batch_norm_layers(network).values()
    return any(layer.training or layer.running_mean is None for layer in layers)


def _fewest_rows(network: nn.Module, image: Tensor) -> dict[bool, int]:
    """Images that a piece has at least, eager and compiled, from what backward keeps of one image (1,C,H,W)."""
    known, shape = _fewest.setdefault(network, {}), tuple(image.shape[1:])
    if shape not in known:
        known[shape] = _looked_at(network, image)
    return known[shape]


def _looked_at(network: nn.Module, image: Tensor) -> dict[bool, int]:
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def look(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in parameters:
            kept[place] = max(kept.get(place, 0), tensor.numel() // 2)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor)
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), hooks:
        # the graph keeps the tensors, so that each has a place of its own; some norms refuse one image of 1 x 1
        graph = network(image.repeat(2, 1, 1, 1))
    del graph
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    enough = math.ceil(PER_PARAMETER * trained / max(1, sum(kept.values())))
    largest = max(1, *kept.values(), image.numel())
    return {
        compiled: max(1, enough, values // largest) for compiled, values in ((False, VALUES), (True, COMPILED_VALUES))
    }
