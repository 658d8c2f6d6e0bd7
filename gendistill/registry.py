"""What can be plugged in by name: distillers, refiners, networks, data sources and checks of a set.

Ours are named here and imported when they are first asked for. A package adds its own by a decorator or by an entry
point of the group ``gendistill.distillers``, ``.refiners``, ``.networks``, ``.sources`` or ``.checks``. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from gendistill.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names and what they stand for, in the order of registration: ours, those of decorators, those of entry points.

    Args:
        kind: What one is called in messages, such as ``method``.
        group: The group of entry points.
        ours: "module:attribute" by name.
    """

    def __init__(self, kind: str, group: str, ours: Mapping[str, str]) -> None:
        self.kind, self.group = kind, group
        self._ours, self._added = dict(ours), dict[str, T]()

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that puts a function or class under ``name``.

        Raises:
            ConfigError: the name is taken.
        """

        def add(one: T) -> T:
            if name in self._ours or self._added.get(name, one) is not one:
                raise ConfigError(f"The {self.kind} {name!r} is registered already; give yours another name.")
            self._added[name] = one
            return one

        return add

    def names(self) -> tuple[str, ...]:
        """Every name that ``self[name]`` takes."""
        return tuple(dict.fromkeys([*self._ours, *self._added, *(point.name for point in self._points())]))

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __getitem__(self, name: str) -> T:
        """What stands under ``name``, imported where that was not done yet.

        Raises:
            ConfigError: nothing does; the message lists what is there.
        """
        if name in self._ours:
            module, _, attribute = self._ours[name].partition(":")
            one: T = getattr(import_module(module), attribute)
            return one
        if name in self._added:
            return self._added[name]
        for point in self._points():
            if point.name == name:
                return self._added.setdefault(name, point.load())
        raise ConfigError(f"{self.kind} is {name!r}; expected one of {', '.join(self.names())}.")

    def _points(self) -> list[EntryPoint]:
        return [point for point in entry_points(group=self.group) if point.name not in self._ours]
