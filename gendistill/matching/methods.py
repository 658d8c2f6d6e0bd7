"""What each method of the family is: its values of the engine's choices, by images per class and kind of images.

Published or released values where there are some (shared sources: DC 2006.05929, DSA 2102.08259, DM 2110.04181, IDC
2205.14959, DREAM 2302.14416, IDM 2307.09742, NCFM 2502.20653); for every other IPC, size and data the nearest rule
below, so that nothing is refused for want of hyper-parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any, TypeVar

from torch import nn

from gendistill import cpu_speed, runtime
from gendistill.config import (
    Blended,
    Characteristic,
    DistillConfig,
    Features,
    Fresh,
    Gradient,
    MatchingConfig,
    Queue,
    Representative,
    as_tuple,
    ipc_sizes,
    require,
    to_dict,
)
from gendistill.config.base import Options, shown
from gendistill.config.flat import to_flat
from gendistill.data.dataset import RealData
from gendistill.errors import ConfigError
from gendistill.hashing import hash_json
from gendistill.matching.network_pool import TRAINED
from gendistill.networks.factories import build_network, takes_option
from gendistill.networks.training import training_flop
from gendistill.registry import DISTILLERS, resolve
from gendistill.runtime import BACKWARD
from gendistill.surrogate.multi_formation import Factor, sides

STANDARDISED = 0.25**2  # see ``image_rate``
SMALLEST = 28  # px of published images
MOST_PICKS = 256  # of a class; IDM's 5000 below IPC 10 would be the whole class, and no selection
SHARE = 4  # of a class's images to one that is picked, at least
T = TypeVar("T", bound=Options)
# DC's (inner steps, epochs of network training) from an IPC on
LOOPS = {50: (50, 10), 40: (40, 15), 30: (30, 20), 20: (20, 25), 10: (10, 50), 0: (1, 1)}


@dataclass(frozen=True)
class Images:
    """What the presets ask of the data.

    Attributes:
        channels: Of the images.
        size: Their side in pixels.
        classes: How many there are.
        per_class: Images of the smallest class; 0 is many.
        count: Training images of all classes.
        name: Of the data, by which IDC's code knows MNIST and SVHN.
    """

    channels: int
    size: int
    classes: int
    per_class: int = 0
    count: int = 0
    name: str = ""

    @property
    def plain(self) -> bool:
        """Grey images up to 32 px, as MNIST and its like."""
        return self.channels == 1 and self.size <= 32

    @property
    def digits(self) -> bool:
        """MNIST and other handwritten digits, by their name; not Fashion-MNIST, KMNIST or EMNIST."""
        name = self.name.lower()
        named = re.search(r"(?<![a-z])(mnist|digits)", name) is not None and "fashion" not in name
        return self.plain and named

    @property
    def cifar(self) -> bool:
        """Photographs below 64 px, but for SVHN, which its name tells."""
        return self.channels == 3 and self.size < 64 and "svhn" not in self.name.lower()

    @property
    def large(self) -> bool:
        """128 px and more, as ImageNet's subsets."""
        return self.size >= 128


def resolve_options(method: str, config: MatchingConfig, ipc: int, images: Images) -> MatchingConfig:
    """The config with the method's value for everything left null.

    Representative selection brings the clustered start, and smaller batches where they would leave no choice.
    """
    factor = max(sides(as_tuple(config.factor))) if config.factor is not None else None
    preset = _filled_from(method_of(method).preset(ipc, images, factor), COMMON)
    chosen = preset.selection if config.selection is None else config.selection
    if isinstance(chosen, Representative):
        most = max(1, images.per_class // SHARE) if images.per_class else MOST_PICKS  # of the class, else no choice
        batch = min(filled(preset.real_batch), MOST_PICKS, most)
        batch = max(1, batch // chosen.per_cluster) * chosen.per_cluster
        usual = preset.selection
        if not isinstance(usual, Representative):
            cheap: dict[str, Any] = {"candidates": 4 * (config.real_batch or batch), "dimensions": 256}
            usual = Representative(interval=method_of(method).interval, cluster_weights="fixed", **cheap)
        preset = replace(preset, start="clustered", real_batch=batch, selection=usual)
    return _filled_from(config, preset)


def _filled_from(config: T, other: T) -> T:
    """``config`` with the values of ``other`` where it has none."""
    found = {}
    for one in fields(config):
        mine, theirs = getattr(config, one.name), getattr(other, one.name)
        chosen = isinstance(mine, Options) and type(mine) is type(theirs)
        found[one.name] = theirs if mine is None else _filled_from(mine, theirs) if chosen else mine
    return replace(config, **found)


def image_rate(method: str, config: MatchingConfig, ipc: int, images: Images) -> float:
    """The images' learning rate: IDC scales its own by ipc / 10 and (size / base)^2, with base 28 for MNIST, 224 for
    ImageNet and 32 for all others, Fashion-MNIST too.

    Images below 28 px, the smallest published, take the rate of 28 px: on 8 px the square would be 1/12.

    Means over the views of a class leave each a smaller gradient where there are more.

    The presets' rates are for images in [0, 1], as IDC's are published. DC, DSA, DM and IDM learn standardised images:
    with u = (x - mean) / s a gradient in x is 1/s of that in u, and a step of x is one of 1/s in u, so their rates are
    multiplied by s^2, s being 1/4 as of photographs.
    """
    rate = config.learning_rate
    assert rate is not None
    if not method_of(method).scales_rate:
        return rate
    base = 28 if images.digits else 224 if images.large else 32
    return rate * ipc / 10 * (max(images.size, SMALLEST) / base) ** 2


def _dc(ipc: int, images: Images, factor: int | None) -> MatchingConfig:
    inner, epochs = next(loops for least, loops in LOOPS.items() if ipc >= least)
    return MatchingConfig(
        start="noise",
        inner_steps=inner,
        learning_rate=0.1 * STANDARDISED,
        real_batch=256,
        objective=Gradient(distance="cosine", match_head=True, feature_weight=0.0),
        networks=Fresh(train_on="surrogate", warm_steps=0),
        train_steps=epochs,
        train_batch=256,
        checkpoint_every=10,
    )


def _dsa(ipc: int, images: Images, factor: int | None) -> MatchingConfig:
    return replace(_dc(ipc, images, factor), start="random", augmentation="one")


def _dm(ipc: int, images: Images, factor: int | None) -> MatchingConfig:
    return MatchingConfig(
        start="random",
        learning_rate=1.0 * STANDARDISED,
        real_batch=256,
        objective=Features(class_aware=0.0),
        augmentation="one",
        networks=Fresh(train_on="none", warm_steps=0),
    )


def _idc(ipc: int, images: Images, factor: int | None) -> MatchingConfig:
    """As argument.py and misc/reproduce.py of the released code (snu-mllab/Efficient-Dataset-Condensation) have it."""
    large, many = images.large, images.large and images.classes >= 100
    factor, batch = factor or (3 if large else 2), 128 if many else 64
    rate = (1e-3 if many else 3e-3) if large else 1e-4 if images.plain else 5e-3
    trained = 2000 if images.cifar and images.classes <= 10 else 500  # images between two steps
    warm = (5 if many else 10) * -(-images.count // batch) if large else 0  # epochs
    bare = images.digits and factor > 1  # "cutmix or cutout is not much effective"
    return MatchingConfig(
        network="resnetap10" if large else "convnet",
        start="random",
        factor=factor,
        inner_steps=100,
        learning_rate=rate,
        real_batch=batch,
        most_views=128,
        objective=Gradient(distance="l1" if images.plain or large else "mse", match_head=False, feature_weight=0.0),
        augmentation="color_crop" if bare else "all",
        networks=Fresh(train_on="real", warm_steps=warm),
        train_steps=-(-trained // batch),
        train_batch=batch,
        train_learning_rate=0.1 if many else 0.01,
        cutmix=0.0 if bare else 1.0 if large else 0.5,
        checkpoint_every=1,  # an iteration is 100 steps
    )


def _dream(ipc: int, images: Images, factor: int | None) -> MatchingConfig:
    """IDC's with the values that argument.py and misc/reproduce.py of DREAM's code (Yanqing0327/DREAM) change."""
    idc, tiny = _idc(ipc, images, factor), images.channels == 3 and not images.large and images.size >= 64
    trained = 1000 if tiny else 2000 if images.cifar else 500  # of CIFAR-100 as of CIFAR-10
    return replace(
        idc,
        start="clustered",
        learning_rate=1e-6 if tiny and ipc >= 50 else idc.learning_rate,
        real_batch=64 if tiny else 128,
        selection=Representative(interval=10, cluster_weights="free", candidates=0, dimensions=0),
        train_steps=-(-trained // filled(idc.train_batch)),
        cutmix=1.0 if tiny else idc.cutmix,  # argument.py lowers it for smaller images alone
    )


def _idm(ipc: int, images: Images, factor: int | None) -> MatchingConfig:
    few = ipc < 10 and images.size < 64
    if images.large:
        weight, steps = 3.0, 10
    elif images.size >= 64:
        weight, steps = (0.5, 10) if ipc < 50 else (0.8, 50)
    elif images.classes > 10:
        weight, steps = 0.5 if few else 0.1, 50 if 10 <= ipc < 50 else 10
    else:
        weight, steps = 0.5 if ipc < 50 else 0.1, 10
    return MatchingConfig(
        start="random",
        factor=2,
        learning_rate=0.2 * STANDARDISED,
        real_batch=5000 if few else 128 if images.large else 256,
        objective=Features(class_aware=100 * weight),  # released with the accuracy in percent
        augmentation="one",
        networks=Queue(
            size=50 if images.large and ipc < 50 else 100, interval=50 if images.large else 5 if few else 30
        ),
        train_steps=steps,
        train_batch=256,
    )


def _cf(ipc: int, images: Images, factor: int | None) -> MatchingConfig:
    """As the released code (gszfwsb/NCFM) has it for CIFAR-10, without its second phase (calibration).

    The rate is its 0.01 times its factor of 0.1 for Adam. Augmentation and CutMix are IDC's: its options name the same
    operations.
    """
    batch = 256
    return MatchingConfig(
        factor=2,
        optimizer="adam",
        learning_rate=1e-3,
        momentum=0.9,
        real_batch=1024,
        objective=Characteristic(frequencies=4096, amplitude_weight=0.5),
        augmentation="all",
        networks=Blended(pool_size=20, pool_steps=60 * max(1, images.count // batch)),
        train_batch=batch,
        cutmix=0.5,
    )


COMMON = MatchingConfig(
    network="convnet",
    start="random",
    factor=1,
    inner_steps=1,
    optimizer="sgd",
    momentum=0.5,
    most_views=0,
    selection="random",
    augmentation="none",
    train_steps=0,
    train_batch=64,
    train_learning_rate=0.01,
    cutmix=0.0,
    checkpoint_every=100,
)
UNREAD = {  # what a manifest holds of the options that a method does not read
    "distance": "mse",
    "match_head": False,
    "feature_weight": 0.0,
    "class_aware": 0.0,
    "train_on": "none",
    "warm_steps": 0,
    "queue_size": 1,
    "queue_interval": 1,
    "cluster_weights": "fixed",
    "dimensions": 256,
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """What sets a method apart, beside its values of the options.

    Attributes:
        preset: Its values of the options, by images per class, kind of images, and the factor where one was chosen.
        iterations: The published number of outer iterations.
        large_iterations: The same for images of 128 px and more, where it differs.
        interval: Inner steps between two clusterings of representative selection.
        by_class: The images step after each class.
        scales_rate: The images' rate depends on their number and size (IDC).
        momentum: SGD's, of network training.
        weight_decay: SGD's, of network training.
        many_decay: The same for 100 and more classes of 128 px and more, where it differs.
    """

    preset: Callable[[int, Images, int | None], MatchingConfig]
    iterations: int
    large_iterations: int | None = None
    interval: int = 10
    by_class: bool = False
    scales_rate: bool = False
    momentum: float = 0.9
    weight_decay: float = 5e-4
    many_decay: float | None = None


DC = Method(preset=_dc, iterations=1000, momentum=0.0, weight_decay=0.0)
DSA = Method(preset=_dsa, iterations=1000, momentum=0.0, weight_decay=0.0)
DM = Method(preset=_dm, iterations=20_000, interval=50)  # a clustering takes the time of four steps
IDC = Method(preset=_idc, iterations=2000, large_iterations=500, by_class=True, scales_rate=True, many_decay=1e-4)
# 1200 in the paper, section 4.1; the released code has IDC's 2000
DREAM = replace(IDC, preset=_dream, iterations=1200)
IDM = Method(preset=_idm, iterations=20_000, by_class=True)
CF = Method(preset=_cf, iterations=20_000)


def method_of(name: str) -> Method:
    """What sets the matching method of that name apart; the registry names it."""
    found: Method = resolve(DISTILLERS[name].preset)
    return found


@dataclass(frozen=True)
class Run:
    """One trajectory: the sets that share its networks, with the options all of them have.

    ``flop`` counts the operations on real images (``real_flop``).
    """

    method: str
    iterations: int
    config: MatchingConfig
    ipcs: tuple[int, ...]
    rates: tuple[float, ...]
    weight_decay: float
    flop: Callable[[], float]

    @cached_property
    def fast(self) -> runtime.ExecutionMode:
        """How its networks are run; to know that, a machine may be measured first."""
        return self.mode(cpu_speed.speeds)

    def mode(self, speeds: Callable[[], cpu_speed.Seconds | None]) -> runtime.ExecutionMode:
        own = self.config
        return runtime.execution_mode(own.mixed_precision, own.compile, runtime.device(), self.flop, speeds)

    @property
    def rules(self) -> Method:
        return method_of(self.method)

    @property
    def flat(self) -> dict[str, Any]:
        """The flat options as they were resolved; those that the method does not read have a usual value."""
        own = to_flat(self.config)
        usual = UNREAD | {"interval": self.rules.interval, "candidates": 4 * own["real_batch"]}
        found = {name: usual.get(name) if value is None else value for name, value in own.items()}
        return {name: value for name, value in found.items() if name not in self.config.above}


def plan_runs(config: DistillConfig, data: RealData) -> list[Run]:
    """Sets whose options are the same share a run, unless networks learn from the set itself."""
    method, given = config.method, config.matching
    counts = data.train.labels.bincount(minlength=len(data.classes))
    shape = data.channels, data.image_size, len(data.classes)
    images = Images(*shape, per_class=int(counts.min()), count=len(data.train), name=data.name)
    iterations, decay = length_and_decay(method_of(method), images)
    iterations = config.iterations or iterations
    resolved, presets = (
        [resolve_options(method, options, ipc, images) for ipc in ipc_sizes(config.ipc)]
        for options in (given, _same_kind(given))
    )
    _check_used(method, given, resolved, presets)
    runs: dict[str, Run] = {}
    for ipc, own in zip(ipc_sizes(config.ipc), resolved, strict=True):
        _check(own, data.image_size, int(counts.max()))
        rate = image_rate(method, own, ipc, images)
        alone = ipc if own.train_on == "surrogate" else None
        key = hash_json([to_dict(own), alone])
        found = runs.get(key)
        if found is None:
            flop = partial(real_flop, own, iterations, data)
            found = Run(method, iterations, own, (), (), decay, flop)
        runs[key] = replace(found, ipcs=(*found.ipcs, ipc), rates=(*found.rates, rate))
    return list(runs.values())


def _same_kind(given: MatchingConfig) -> MatchingConfig:
    """No options but those that the values of others depend on."""
    return MatchingConfig(real_batch=given.real_batch, selection=given.selection, factor=given.factor)


def length_and_decay(rules: Method, images: Images) -> tuple[int, float]:
    """The method's number of iterations and weight decay for such images."""
    iterations, decay = rules.iterations, rules.weight_decay
    if images.large:
        iterations = rules.large_iterations or iterations
        decay = decay if rules.many_decay is None or images.classes < 100 else rules.many_decay
    return iterations, decay


def real_flop(own: MatchingConfig, iterations: int, data: RealData) -> float:
    """Floating-point operations on real images, which the sets of a run share."""
    largest = int(data.train.labels.bincount().max())
    passes = 1 if isinstance(own.objective, Gradient) else 1 + BACKWARD
    seen = min(filled(own.real_batch), largest) * len(data.classes) / passes
    networks = TRAINED if isinstance(own.networks, Queue) else 0 if own.train_on in (None, "none") else 1
    trained = networks * filled(own.train_steps) * filled(own.train_batch)
    images = iterations * filled(own.inner_steps) * (seen + trained)
    if isinstance(own.networks, Blended):
        pool = min(filled(own.networks.pool_size), iterations)
        images += pool * filled(own.networks.pool_steps) * filled(own.train_batch)
    return training_flop(network_of(data, own, 0), data.channels, data.image_size, images)


def network_of(data: RealData, config: MatchingConfig, seed: int) -> nn.Module:
    return build_network(
        filled(config.network),
        channels=data.channels,
        image_size=data.image_size,
        classes=len(data.classes),
        width=config.width,
        depth=config.depth,
        seed=seed,
    )


def _check_used(
    method: str, given: MatchingConfig, resolved: Sequence[MatchingConfig], presets: Sequence[MatchingConfig]
) -> None:
    """``resolved`` is what ``given`` comes to at each IPC, ``presets`` what it would with nothing given.

    Raises:
        ConfigError: an option was given that does nothing at any of them.
    """
    values, usual, network = to_flat(given), to_flat(MatchingConfig()), resolved[0].network or ""
    for one, preset in zip(resolved, presets, strict=True):
        same = given.learning_rate is not None or one.optimizer == preset.optimizer
        text = f"a rate with optimizer {one.optimizer}: that of method {method} is for {preset.optimizer}"
        require(same, "matching.learning_rate", None, text)
    for name in ("width", "depth"):
        unread = values[name] != usual[name] and not takes_option(network, name)
        text = f"{shown(usual[name])} with network {network}; it is an option of convnet"
        require(not unread, f"matching.{name}", values[name], text)
    for name, why in _idle(method, resolved[0]).items():
        everywhere = all(name in _idle(method, one) for one in resolved)
        same = values[name] is None or values[name] in [to_flat(one)[name] for one in presets]
        require(same or not everywhere, f"matching.{name}", values[name], f"{shown(usual[name])} {why}")
    learns = any(one.train_steps or filled(one.networks).warm_steps for one in resolved if one.train_on)
    if given.train_on not in (None, "none") and not learns:
        raise ConfigError("matching.train_steps is 0; expected at least 1, or no network would learn.")


def _idle(method: str, config: MatchingConfig) -> dict[str, str]:
    """Options without effect in a run of this resolved config, each with the reason."""
    found: dict[str, str] = {}
    if config.augmentation == "none":
        found["flip"] = "with matching.augmentation none: mirroring is a part of the others"
    if isinstance(config.networks, Queue):
        return found
    if isinstance(config.networks, Blended):
        found["train_steps"] = "with blended networks, whose steps are matching.pool_steps"
        return found
    if isinstance(config.objective, Features):
        found["class_aware"] = f"with method {method}: only a queue knows the accuracy of its networks"
    if isinstance(config.objective, Features) and (config.network or "").endswith("_bn"):
        found["classes_per_chunk"] = f"with method {method} and batch norm, which sees one class at a time"
    if config.train_on == "none" or config.inner_steps == 1:
        why = "with matching.train_on none: no network learns"
        if config.train_on != "none":
            why = "with matching.inner_steps 1: networks learn between two inner steps"
            found["train_on"] = why
        found["train_steps"] = why
    elif not config.train_steps:
        why = "with matching.train_steps 0: no network learns"
    else:
        return found
    warm = filled(config.networks).warm_steps
    return found if warm else found | dict.fromkeys(("train_batch", "train_learning_rate", "cutmix"), why)


def _check(config: MatchingConfig, size: int, largest: int) -> None:
    """Refuse what does not fit images of ``size`` px, or a largest class of so many."""
    factor, batch, networks = formation(config), filled(config.real_batch), filled(config.networks)
    if isinstance(config.selection, Representative):
        few, each = filled(config.selection.candidates), config.selection.per_cluster
        require(few == 0 or few >= batch, "matching.candidates", few, f"0 or at least real_batch = {batch}")
        require(batch % each == 0, "matching.per_cluster", each, f"a divisor of {batch} (real_batch)")
        some = f"below {largest}, the images of the largest class, with selection representative, or selection random"
        require(batch < largest, "matching.real_batch", batch, some)  # or there is nothing to choose
    require(max(sides(factor)) <= size, "matching.factor", factor, f"1 to {size} for images of {size}x{size} px")
    if isinstance(networks, Queue):
        steps = filled(config.inner_steps)
        require(steps == 1, "matching.inner_steps", steps, "1 with a queue, whose networks rest while images move")
        require(config.train_steps != 0, "matching.train_steps", 0, "at least 1, or no network would learn")
    elif isinstance(networks, Fresh) and networks.train_on == "surrogate" and networks.warm_steps:
        raise ConfigError("matching.warm_steps is on real images; expected 0 with train_on surrogate.")


def formation(config: MatchingConfig) -> Factor:
    """The factor of resolved options, or several in ascending order."""
    found = tuple(sorted(as_tuple(filled(config.factor))))
    return found if len(found) > 1 else found[0]


def filled(value: Any) -> Any:
    """An option that ``resolve_options`` has filled."""
    assert value is not None
    return value
