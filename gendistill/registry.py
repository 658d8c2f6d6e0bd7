"""What can be plugged in by name: distillers, refiners, networks, data sources and checks of a set.

Ours are listed here and imported when they are first used. A package adds its own by a decorator (``register_network``
and so on) or by an entry point of the group ``gendistill.distillers``, ``.refiners``, ``.networks``, ``.sources`` or
``.checks``, which names a decorated function. docs/extending.md has an example of each. No torch here.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from gendistill.errors import ConfigError, did_you_mean

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Names and what they stand for, in the order of registration: ours, those of decorators, those of entry points.

    A name that ends in a colon stands for a family: ``timm:`` is found under ``timm:resnet10t``.

    Args:
        kind: What one is called in messages, such as ``method``.
        group: The group of entry points.
        ours: What stands under each name, or where it is, as "module:attribute".
    """

    def __init__(self, kind: str, group: str, ours: Mapping[str, T | str]) -> None:
        self.kind, self.group = kind, group
        self._ours, self._added, self._functions = dict(ours), dict[str, T](), dict[str, Callable[..., Any]]()

    def add(self, name: str, one: T, function: Callable[..., Any]) -> None:
        """Put ``one``, made of ``function``, under ``name``. A cell of a notebook may define its function anew.

        Raises:
            ConfigError: the name is taken.
        """
        before = self._functions.get(name, function)
        same = (before.__module__, before.__qualname__) == (function.__module__, function.__qualname__)
        if name in self._ours or not same:
            raise ConfigError(f"The {self.kind} {name!r} is registered already; give yours another name.")
        self._added[name], self._functions[name] = one, function

    def names(self) -> tuple[str, ...]:
        """Every name that ``self[name]`` takes; a family as ``timm:NAME``."""
        found = dict.fromkeys([*self._ours, *self._added, *self._points()])
        return tuple(f"{name}NAME" if name.endswith(":") else name for name in found)

    def added(self) -> tuple[str, ...]:
        """The names that are not ours."""
        return tuple(dict.fromkeys([*self._added, *(name for name in self._points() if name not in self._ours)]))

    def ours(self) -> tuple[str, ...]:
        """The names that are ours."""
        return tuple(self._ours)

    def is_added(self, name: str) -> bool:
        """Whether the name is not ours."""
        return self._key(name) not in (None, *self._ours)

    def source(self, name: str) -> str | None:
        """The text of the module that registers a name which is not ours; null where it has none, as a prompt's."""
        key = self._key(name)
        if key is None or key in self._ours or self[key] is None:
            return None
        function = self._functions[key]
        try:
            return inspect.getsource(inspect.getmodule(function) or function)
        except (OSError, TypeError):
            return None

    def __contains__(self, name: object) -> bool:
        return self._key(str(name)) is not None

    def __getitem__(self, name: str) -> T:
        """What stands under ``name``, imported where that was not done yet.

        Raises:
            ConfigError: nothing does, or its package cannot be imported; the message lists what is there.
        """
        key = self._key(name)
        if key is None:
            raise ConfigError(self.unknown(name))
        if key in self._added:
            return self._added[key]
        if key not in self._ours:
            return self._load(key)
        return resolve(self._ours[key])

    def unknown(self, name: str) -> str:
        """The message for a name that nothing stands under."""
        names = self.names()
        return (
            f"{self.kind} is {name!r}; expected one of {', '.join(names)}.{did_you_mean(name, names)} For one of your "
            "own, name the module that registers it: gendistill --plugin MODULE COMMAND."
        )

    def _key(self, name: str) -> str | None:
        family, colon, _ = name.partition(":")
        known = {**self._ours, **self._added, **self._points()}
        return next((key for key in (name, family + colon) if key in known), None)

    def _points(self) -> dict[str, EntryPoint]:
        return _entry_points(self.group, tuple(sys.path))

    def _load(self, name: str) -> T:
        """What the module of an entry point registers under its name."""
        point = self._points()[name]
        package = point.dist.name if point.dist else point.module
        try:
            point.load()
        except Exception as error:
            raise ConfigError(
                f"The {self.kind} {name!r} of the package {package} cannot be imported "
                f"({type(error).__name__}: {error}). Repair the package or uninstall it."
            ) from error
        if name not in self._added:
            raise ConfigError(
                f"The package {package} offers a {self.kind} {name!r} as {point.value}, which registers none of that "
                f"name; expected a function under @gendistill.register_...({name!r})."
            )
        return self._added[name]


@cache
def _entry_points(group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """By name; ``path`` is sys.path, on which the packages are found."""
    return {point.name: point for point in entry_points(group=group)}


def resolve(target: Any) -> Any:
    """What "module:attribute" names; anything but a string as it is."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the keywords offered, those that a function has a parameter for."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in offered.items() if name in known}


def plugins_of_environment() -> list[str]:
    """The modules that GENDISTILL_PLUGINS names, separated by commas."""
    return [name for name in os.environ.get("GENDISTILL_PLUGINS", "").split(",") if name]


def import_plugins(modules: Iterable[str]) -> None:
    """Import modules that register something; those of the current folder are found too.

    Raises:
        ConfigError: one cannot be imported.
    """
    for name in modules:
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            import_module(name)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"The plugin {name!r} cannot be imported ({type(error).__name__}: {error}); expected a module that "
                "Python finds here, such as my_methods for my_methods.py."
            ) from error


@dataclass(frozen=True, kw_only=True)
class Distiller:
    """A method that makes surrogate sets straight from the real images, with whatever sets it apart from others.

    Attributes:
        make: Yields a set for each of ``config.ipc``; see ``distill_sets`` for its arguments.
        function: Of a coreset, which images it takes of a class; of a method of your own, what makes one set.
        coreset: Whether ``function`` chooses positions by features.
        scores: Of a coreset that compares neither pixels nor a teacher's features: called with (data, seed), it returns
            what it compares as a baseline.
        takes_teacher: Whether a coreset can compare a teacher's features instead of pixels.
        options: Dataclass of the method's options, null where it has none.
        sections: Flat options of DistillConfig that the method reads, beside ``method`` and ``ipc``.
        needs_teacher: Whether it cannot do without teachers.
        parallel: Whether several processes share its work.
        resumable: Whether a killed run continues where it was.
        temporary: Names below its folder that only a resumed run needs.
        inputs: Sets that the options name, further arguments of ``make``: called with (data, config), it returns {name:
            set}.
        preset: Of a matching method, its ``Method`` in matching/methods.py.
        choices: Of a matching method, the kinds of objective and networks whose options it has (config/distill.py).
    """

    make: Callable[..., Iterator[Any]] | str
    function: Callable[..., Any] | str | None = None
    coreset: bool = False
    scores: Callable[..., Any] | str | None = None
    takes_teacher: bool = False
    options: type | None = None
    sections: tuple[str, ...] = ()
    needs_teacher: bool = False
    parallel: bool = False
    resumable: bool = False
    temporary: tuple[str, ...] = ()
    inputs: Callable[..., Mapping[str, Any]] | str | None = None
    preset: Any = None
    choices: tuple[str, ...] = ()


def _coreset(function: Callable[..., Any] | str, takes_teacher: bool = True) -> Distiller:
    return Distiller(
        make="gendistill.distillers:coreset_sets", function=function, coreset=True, takes_teacher=takes_teacher
    )


_WMDD = Distiller(
    make="gendistill.distillers:wmdd_sets",
    sections=("wmdd", "compression_aware"),
    needs_teacher=True,
    parallel=True,
    resumable=True,
    temporary=("chunks",),
)


def _matching(preset: str, *choices: str) -> Distiller:
    return Distiller(
        make="gendistill.distillers:matching_sets",
        sections=("selection", "iterations", "matching", "compression_aware"),
        parallel=True,
        resumable=True,
        temporary=("checkpoints",),
        inputs="gendistill.distillers:start_of_matching",
        preset=f"gendistill.matching.methods:{preset}",
        choices=choices,
    )


DISTILLERS = Registry[Distiller](
    "method",
    "gendistill.distillers",
    {
        **{
            name: _coreset(f"gendistill.coreset.coresets:{name}", name != "random")
            for name in ("random", "kmeans", "herding", "kcenter")
        },
        "difficulty": Distiller(
            make="gendistill.distillers:difficulty_sets",
            function="gendistill.coreset.difficulty:difficulty",
            coreset=True,
            scores="gendistill.coreset.difficulty:baseline_scores",
            sections=("difficulty",),
            resumable=True,
            temporary=("checkpoints",),
        ),
        "wmdd": _WMDD,
        "dc": _matching("DC", "gradient", "fresh"),
        "dsa": _matching("DSA", "gradient", "fresh"),
        "dm": _matching("DM", "features", "fresh"),
        "idc": _matching("IDC", "gradient", "fresh"),
        "dream": _matching("DREAM", "gradient", "fresh"),
        "idm": _matching("IDM", "features", "queue"),
        "cf": _matching("CF", "characteristic", "blended"),
    },
)


def coresets() -> tuple[str, ...]:
    """The methods that choose real images."""
    return tuple(name for name in DISTILLERS.names() if DISTILLERS[name].coreset)


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Where real images come from.

    Attributes:
        function: Called with the DataConfig, it returns a Source.
        matches: Whether it reads a name; null where it reads its own name and ``name:...``.
    """

    function: Callable[..., Any] | str
    matches: Callable[[str], bool] | str | None = None


def _source(function: str, matches: str | None = None) -> DataSource:
    return DataSource(function=f"gendistill.data.{function}", matches=matches and f"gendistill.{matches}")


SOURCES = Registry[DataSource](
    "data source",
    "gendistill.sources",
    {
        "digits": _source("sources:digits"),
        "folder": _source("folders:folder", "data.sources:is_folder"),
        "list": _source("lists:file_list", "config.data:is_list"),
        "hub": _source("columns:hub", "config.data:could_be_hub_id"),
    },
)
_NETWORKS = [f"{name}{norm}" for name in ("convnet", "resnet10", "resnet18", "resnetap10") for norm in ("", "_bn")]
NETWORKS = Registry[Callable[..., Any]](
    "network",
    "gendistill.networks",
    {
        **{name: f"gendistill.networks.factories:{name}" for name in _NETWORKS},
        "timm:": "gendistill.networks.factories:timm_network",
    },
)


@dataclass(frozen=True, kw_only=True)
class Refiner:
    """What makes better images of a set's.

    Attributes:
        function: ``(made, data, teachers, seed)`` -> SurrogateSet.
        options: Dataclass of its options, null where it has none.
    """

    function: Callable[..., Any] | str
    options: type | None = None


REFINERS = Registry[Refiner](
    "refiner", "gendistill.refiners", {"barycenter": Refiner(function="gendistill.refine.refiner:barycenter")}
)
_CHECKS = "gendistill.evaluation.checks."
CHECKS = Registry[Callable[..., Iterable[Any]]](
    "check",
    "gendistill.checks",
    {
        "counts": _CHECKS + "counts:check_counts",
        "pixel_values": _CHECKS + "pixel_values:check_pixel_values",
        "labels": _CHECKS + "labels:check_labels",
        "duplicates": _CHECKS + "counts:check_duplicates",
        "leaks": _CHECKS + "counts:check_leaks",
        "soft_labels": _CHECKS + "counts:check_soft_targets",
    },
)
CHOICES: dict[str, Registry[Any]] = {
    "method": DISTILLERS,
    "network": NETWORKS,
    "refiner": REFINERS,
}  # options whose values are registered names


def register_distiller(
    name: str, *, options: type | None = None, needs_teacher: bool = False, resumable: bool = False
) -> Callable[[F], F]:
    """Decorator: a method of your own, a function ``(data, ipc, seed) -> SurrogateSet``.

    Args:
        name: The method's name.
        options: A dataclass; its instance comes as ``options=``.
        needs_teacher: The teachers, a list, come as ``teachers=``.
        resumable: A WorkFolder, or None, comes as ``work=``; what is in it after a kill is there again.

    Raises:
        ConfigError: the name is taken, or ``options`` is no dataclass.
    """
    _require_dataclass(f"the method {name!r}", options)

    def add(function: F) -> F:
        one = Distiller(
            make="gendistill.distillers:function_sets",
            function=function,
            options=options,
            sections=("options",) if options else (),
            needs_teacher=needs_teacher,
            resumable=resumable,
        )
        DISTILLERS.add(name, one, function)
        return function

    return add


def _require_dataclass(owner: str, options: object) -> None:
    if options is not None and not is_dataclass(options):
        raise ConfigError(f"options of {owner} is {options!r}; expected a dataclass.")


def register_coreset(name: str) -> Callable[[F], F]:
    """Decorator: a coreset of your own, a function ``(features, count, seed) -> positions``.

    ``features`` is a float64 array (n,D) of one class, ``positions`` are ``count`` different integers below n.

    Args:
        name: What ``distill(data, NAME, ipc)``, ``--method NAME`` and ``--baselines [random,NAME]`` choose.
    """

    def add(function: F) -> F:
        DISTILLERS.add(name, _coreset(function), function)
        return function

    return add


def register_refiner(name: str, *, options: type | None = None) -> Callable[[F], F]:
    """Decorator: a refiner of your own, a function ``(made, data, teachers, seed) -> SurrogateSet``.

    ``made`` has the selected images, ``teachers`` is a list. The function may have further parameters: ``space`` (the
    FeatureSpace of the teachers), ``config`` (the RefineConfig), ``ipc``, ``held_out``, ``work`` and ``codec``.

    Args:
        name: What ``RefineConfig(refiner=NAME)`` and ``refine --refiner NAME`` choose.
        options: A dataclass; its instance comes as ``options=``.

    Raises:
        ConfigError: the name is taken, or ``options`` is no dataclass.
    """
    _require_dataclass(f"the refiner {name!r}", options)

    def add(function: F) -> F:
        REFINERS.add(name, Refiner(function=function, options=options), function)
        return function

    return add


def register_network(name: str) -> Callable[[F], F]:
    """Decorator: a network of your own, a function or class ``(channels, image_size, classes) -> nn.Module``.

    It may also have the parameters ``width`` and ``depth``, which are options of every command that trains networks.
    The module maps images (B,channels,image_size,image_size) in [-1, 1] to logits (B,classes). It has ``features``
    (B,D) and ``classify``, which maps those to the logits, or it ends with a Linear layer.

    Args:
        name: What ``TeacherConfig(network=NAME)`` and ``--network NAME`` choose.
    """

    def add(factory: F) -> F:
        NETWORKS.add(name, factory, factory)
        return factory

    return add


def register_source(name: str, *, matches: Callable[[str], bool] | None = None) -> Callable[[F], F]:
    """Decorator: a data source of your own, a function ``(config) -> Source`` of the DataConfig.

    Args:
        name: ``--data.name NAME`` and ``--data.name NAME:...`` read it.
        matches: Whether it reads a data.name, where the name is not to begin so; called before ours are.
    """

    def add(function: F) -> F:
        SOURCES.add(name, DataSource(function=function, matches=matches), function)
        return function

    return add


def register_check(name: str) -> Callable[[F], F]:
    """Decorator: a check of your own that every evaluation runs, ``(subject, real) -> findings``.

    ``subject`` is a DescribedSet, ``real`` the RealReference it is compared with. What it finds is an iterable of
    Finding; it stands in the summary, on the report's page and on the terminal.

    Args:
        name: What messages call the check.
    """

    def add(function: F) -> F:
        CHECKS.add(name, function, function)
        return function

    return add
