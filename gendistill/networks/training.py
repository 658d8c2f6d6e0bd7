"""One supervised training loop, used for teachers and for every evaluation row."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Literal, TypedDict, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill import runtime
from gendistill.config.evaluate import Decayed
from gendistill.config.teacher import ClassifierConfig
from gendistill.data.augmentation import Augmentation
from gendistill.data.crops import batch_indices, epoch_indices
from gendistill.data.dataset import Split
from gendistill.data.mapped import Images, float_table, memory_for, read_steps
from gendistill.data.pixels import to_float
from gendistill.errors import ConfigError
from gendistill.networks.data_parallel import add_up_gradients, begin_alike, own_rows
from gendistill.networks.factories import batch_norm_layers
from gendistill.networks.pieces import backward_in_pieces, piece_rows, prediction_rows
from gendistill.networks.training_checkpoints import TrainingCheckpoints
from gendistill.progress import track

Rate = Callable[[int], float]


def warm_cosine(steps: int) -> Rate:
    """One cycle: a linear warm-up over the first twentieth of the steps, then a cosine that ends at 0."""
    warmup = max(1, steps // 20)
    return lambda step: min((step + 1) / warmup, 0.5 * (1 + torch.cos(torch.tensor(step / steps * torch.pi)).item()))


def cosine(steps: int, per_epoch: int = 1) -> Rate:
    """Half a cosine from 1 to 0, constant within an epoch of ``per_epoch`` steps."""
    epochs = steps // per_epoch
    return lambda step: 0.5 * (1 + math.cos(math.pi * (step // per_epoch) / epochs))


def multi_step(steps: int, milestones: Sequence[float], decay: float, per_epoch: int = 1) -> Rate:
    """Multiplied by ``decay`` after each of ``milestones``, shares of the epochs, rounded down to full epochs."""
    epochs = steps // per_epoch
    ends = [math.floor(share * epochs + 1e-9) for share in milestones]
    return lambda step: decay ** sum(step // per_epoch >= end for end in ends)


LOOK = 100  # steps between looks at the loss, each of which waits for the device
CPU_PIXELS = 2**23  # values of the images in one forward pass without gradients: 512 RGB images of 73 px, 55 of 224 px
CPU_ROWS = 64  # half the time of batches of 512, and fewer where activations are large (``networks/pieces.py``)
Optimizer = Literal["adamw", "sgd"]
Batches = Callable[[int], tuple[Tensor, Tensor]]  # step -> (images (B,C,H,W) in [-1, 1], targets (B,) or (B,K))


def augmented_batches(
    split: Split,
    augmentation: Augmentation,
    *,
    batch_size: int,
    seed: int,
    targets: Tensor | None = None,
    classes: int | None = None,
    whole_epochs: bool = False,
) -> Batches:
    """step -> augmented images of ``split`` with its labels, or with ``targets`` (N,K), on the device of its labels.

    With ``classes`` K labels become probabilities (B,K). Batches cross the ends of epochs; with ``whole_epochs`` each
    epoch ends with a smaller batch of what is left.
    """
    device, indices = split.labels.device, epoch_indices if whole_epochs else batch_indices
    wanted = (split.labels if targets is None else targets).to(device)

    def index_of(step: int) -> Tensor:
        return indices(len(split), batch_size, step, seed)

    read = read_steps(split.images, index_of, device)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        own = wanted[runtime.to_device(index_of(step), device)]
        own = F.one_hot(own, classes).float() if classes and targets is None else own
        return augmentation.batch(to_float(read(step)), own, seed, step)

    return batch


class TrainingRecord(TypedDict):
    """The number of steps taken, and the loss of the last one, a scalar on the device."""

    step: int
    loss: Tensor


def train_classifier(
    network: nn.Module,
    split: Split,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    shift: int = 0,
    flip: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    batches: Batches | None = None,
    temperature: float = 1.0,
    weight_decay_on: Decayed = "all",
    optimizer: Optimizer = "adamw",
    momentum: float = 0.9,
    rate: Rate | None = None,
    bf16: bool = False,
    compile: bool = False,
    shared: bool = False,
    checkpoints: TrainingCheckpoints | None = None,
) -> Generator[TrainingRecord, None, nn.Module]:
    """The optimiser on the mean cross-entropy; yields {step, loss}; returns the network, in eval.

    A set smaller than ``batch_size`` gives batches of its own size, so equal ``steps`` mean equal optimiser steps.
    ``weight_decay_on`` says which parameters decay: ``all``, or ``weights``, those of more than one dimension.
    ``rate`` is the share of ``learning_rate`` at each step, by default ``warm_cosine``; ``momentum`` is SGD's.
    ``batches`` replaces the augmented images of ``split`` and their labels. With soft targets made at ``temperature`` T
    the loss is T^2 CE(softmax(logits / T), targets), whose gradients keep their size (Hinton et al. 2015, section 2).
    ``bf16`` runs the network under autocast, ``compile`` compiles it; both change rounding only. On a CPU large batches
    go through in pieces (``networks/pieces.py``), which changes rounding and the masks of dropout. With ``shared``
    several processes call this alike, inside ``WholeBatchNorm``, and share each batch (``networks/data_parallel.py``).
    With ``checkpoints`` the training goes on from the newest one, and yields the records of the steps after it.

    Raises:
        ConfigError: batch norm would see a batch of one image, or a process none.
        DivergenceError: the loss became infinite or not a number.
        ArtifactError: the checkpoint is damaged, or belongs to another training.
    """
    require_batch_of_two(network, batch_size, len(split))
    device = torch.device(device)
    network = network.to(device).to(memory_format=_layout(bf16, compile)).train()
    batch_loss = mean_loss(network, temperature=temperature, bf16=bf16, compile=compile)
    if batches is None:
        augmentation = Augmentation(shift=shift, flip=flip)
        batches = augmented_batches(split.to(device), augmentation, batch_size=batch_size, seed=seed)
    groups = _groups(network, weight_decay, weight_decay_on)
    descent, rate = _optimizer(groups, optimizer, learning_rate, momentum), rate or warm_cosine(steps)
    done = checkpoints.restore(network, descent) if checkpoints else 0
    if shared:
        begin_alike(network, min(batch_size, len(split)))
    highest = torch.zeros((), device=device)
    for step in range(done, steps):
        for group in descent.param_groups:
            group["lr"] = learning_rate * rate(step)
        images, targets = (runtime.to_device(tensor, device) for tensor in batches(step))
        images, targets, weight = own_rows(images, targets) if shared else (images, targets, 1.0)
        images = images.contiguous(memory_format=_layout(bf16, compile))
        rows = piece_rows(network, images, compiled=compile)
        descent.zero_grad(set_to_none=True)
        loss = backward_in_pieces(batch_loss, images, targets, rows, weight)
        loss = add_up_gradients(network.parameters(), loss) if shared else loss
        descent.step()
        highest = torch.maximum(highest, loss)  # which keeps NaN
        if (step + 1) % LOOK == 0 or step + 1 == steps:
            what = f"Training diverged: its loss is {float(highest)},"
            runtime.refuse_divergence(what, [highest], f"Lower learning_rate, which is {learning_rate:g}.")
        yield {"step": step + 1, "loss": loss}
        if checkpoints:
            checkpoints.save_if_due(step + 1, network, descent, last=step + 1 == steps)
    return network.eval()


def configured_training(
    network: nn.Module,
    split: Split,
    config: ClassifierConfig,
    *,
    steps: int,
    seed: int,
    shared: bool = False,
    checkpoints: TrainingCheckpoints | None = None,
) -> Generator[TrainingRecord, None, nn.Module]:
    """``train_classifier`` with these options, on this process's device."""
    channels, side = split.images.shape[1:3]
    flop = partial(training_flop, network, channels, side, steps * config.batch_size)
    compile = False if shared and batch_norm_layers(network) else config.compile
    mode = runtime.execution_mode(config.mixed_precision, compile, runtime.device(), flop)
    return train_classifier(
        network,
        split,
        steps=steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        shift=config.shift,
        flip=config.flip,
        seed=seed,
        device=runtime.device(),
        bf16=mode.bf16,
        compile=mode.compile,
        shared=shared,
        checkpoints=checkpoints,
    )


def _groups(network: nn.Module, weight_decay: float, on: Decayed) -> list[dict[str, Any]]:
    """Parameters with the same weight decay together."""
    parameters = list(network.parameters())
    if on == "all":
        return [{"params": parameters, "weight_decay": weight_decay}]
    weights, others = ([p for p in parameters if (p.ndim > 1) is wanted] for wanted in (True, False))
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _optimizer(
    groups: list[dict[str, Any]], name: Optimizer, learning_rate: float, momentum: float
) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum)
    return torch.optim.AdamW(groups, lr=learning_rate)


def classification_loss(
    network: nn.Module, images: Tensor, targets: Tensor, temperature: float = 1.0, bf16: bool = False
) -> Tensor:
    """T^2 CE(softmax(logits / T), targets), the mean over the batch."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits = network(images)
    return temperature**2 * F.cross_entropy(logits.float() / temperature, targets)


def mean_loss(
    network: nn.Module, *, temperature: float = 1.0, bf16: bool = False, compile: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """``classification_loss`` of images and targets on this network, compiled where asked."""
    loss_of = runtime.compiled(classification_loss) if compile else classification_loss
    return lambda images, targets: loss_of(network, images, targets, temperature, bf16)


def _layout(bf16: bool, compile: bool) -> torch.memory_format:
    """Channels last, except for the eager fp32 convolutions of a CPU, which are a tenth slower with it."""
    return torch.channels_last if bf16 or compile else torch.contiguous_format


def trains_batch_norm(network: nn.Module) -> bool:
    """Whether batch norm in ``network``, which is put into training mode, normalises by the statistics of a batch."""
    return any(layer.training for layer in batch_norm_layers(network.train()).values())


def require_batch_of_two(network: nn.Module, batch_size: int, images: int, row: str = "") -> None:
    """Refuse batches of one image where batch norm needs their variance; ``row`` names what is trained on."""
    if min(batch_size, images) < 2 and trains_batch_norm(network):
        of = f" of {row}" if row else ""
        raise ConfigError(
            f"batch_size is {batch_size} for {images} image(s){of}: batch norm needs at least 2 images a batch. "
            "Raise batch_size, or take a network without batch norm such as 'convnet'."
        )


def inference_rows(network: nn.Module, usual: int, image: Sequence[int] = ()) -> int:
    """Images in one forward pass without gradients: fewer than ``usual`` where the network asks for it, and on a CPU
    where images of the shape ``image`` (C,H,W) are large, as their activations are."""
    rows = min(usual, int(getattr(network, "inference_rows", usual)))
    large = bool(image) and next(network.parameters()).device.type == "cpu"
    return max(1, min(rows, CPU_PIXELS // math.prod(image))) if large else rows


Output = TypeVar("Output", Tensor, tuple[Tensor, Tensor])


@torch.no_grad()
def infer(function: Callable[..., Output], *inputs: Images, batch_size: int, label: str | None = None) -> Output:
    """``function`` of ``inputs`` (N,...) batch by batch, without gradients, joined on the CPU.

    A result in fp32 that would take more of the machine's memory than the images may, such as the features of a million
    images, is kept in a file. The results of a batch are copied there at once, so nothing is in memory twice.

    Args:
        function: Maps a batch of every input to a tensor (B,...), or to two.
        inputs: Tensors of one length, or images of a file.
        batch_size: Rows of a batch; the last one may have fewer.
        label: Draws a progress bar of this name.
    """
    batches = zip(*(one.split(batch_size) for one in inputs), strict=True)
    count, rows = max(1, -(-len(inputs[0]) // batch_size)), len(inputs[0])
    tables: list[Tensor] = []
    start = 0
    for batch in track(batches, label, count) if label else batches:
        found = function(*batch)
        parts = (found,) if isinstance(found, Tensor) else found
        tables = tables or [_table(part, rows, memory_for(inputs[0])) for part in parts]
        for table, part in zip(tables, parts, strict=True):
            table[start : start + len(part)] = part
        start += len(parts[0])
    return cast(Output, tables[0] if isinstance(found, Tensor) else tuple(tables))


def _table(like: Tensor, rows: int, most: float) -> Tensor:
    """Room for ``rows`` rows like those of a batch, on the CPU; in a file where fp32 takes more than ``most`` bytes."""
    if like.dtype == torch.float32:
        return float_table(rows, like.shape[1:], most)
    return torch.empty(rows, *like.shape[1:], dtype=like.dtype)


def predicted(network: nn.Module, split: Split, *, bf16: bool = False, compile: bool = False) -> tuple[Tensor, Tensor]:
    """The class that the network gives each image of ``split`` (N,), and its probability (N,) in [0, 1]."""
    device = next(network.parameters()).device
    usual, layout = CPU_ROWS if device.type == "cpu" else 512, _layout(bf16, compile)
    rows = inference_rows(network, usual, split.images.shape[1:])
    if device.type == "cpu" and not compile:
        rows = prediction_rows(network, torch.zeros(1, *split.images.shape[1:]), rows)
    fast = runtime.compiled(predict_batch) if compile else predict_batch

    def batch(images: Tensor) -> tuple[Tensor, Tensor]:
        call = fast if len(images) == rows else predict_batch  # the last, smaller batch would be compiled for itself
        return call(network, to_float(runtime.to_device(images, device)).contiguous(memory_format=layout), bf16)

    return infer(batch, split.images, batch_size=rows)


def predict_batch(network: nn.Module, images: Tensor, bf16: bool) -> tuple[Tensor, Tensor]:
    """The most probable class (B,) and its probability (B,), which is 0 where training diverged to NaN."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits = network(images)
    return logits.argmax(1), logits.float().softmax(1).amax(1).nan_to_num(0.0)


def is_correct(network: nn.Module, split: Split, *, bf16: bool = False, compile: bool = False) -> Tensor:
    """Which images of ``split`` the network classifies correctly, bool (N,)."""
    return predicted(network, split, bf16=bf16, compile=compile)[0] == split.labels


def accuracy(network: nn.Module, split: Split, *, bf16: bool = False, compile: bool = False) -> float:
    """Fraction of ``split`` that the network classifies correctly, in [0, 1]."""
    return int(is_correct(network, split, bf16=bf16, compile=compile).sum()) / len(split)


def forward_flop(network: nn.Module, channels: int, image_size: int) -> float:
    """Floating-point operations of one image (``runtime.forward_flop``)."""
    device = next(network.parameters()).device
    return runtime.forward_flop(network, torch.zeros(1, channels, image_size, image_size, device=device))


def training_flop(network: nn.Module, channels: int, image_size: int, images: float) -> float:
    """Floating-point operations of forward and backward passes of so many images."""
    return (1 + runtime.BACKWARD) * images * forward_flop(network, channels, image_size)
