"""What every stage's options share: how they are checked and named. No torch in here."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from gendistill.config.text import load_yaml
from gendistill.errors import ConfigError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])
INFINITE = float("inf")
LARGEST = 1e38  # of a number: fp32 holds few larger ones
LONGEST = 300  # characters of a value in a message


@dataclass(frozen=True)
class Range:
    """The numbers that an option takes: from ``low`` to ``high``, without an end that is open."""

    low: float = -INFINITE
    high: float = INFINITE
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high) and abs(value) <= LARGEST

    def __str__(self) -> str:
        if self.low > -INFINITE and self.high < INFINITE and not (self.open_low or self.open_high):
            return f"from {_digits(self.low)} to {_digits(self.high)}"
        low = f"{'more than' if self.open_low else 'of at least'} {_digits(self.low)}" if self.low > -INFINITE else ""
        high = f"{'less than' if self.open_high else 'at most'} {_digits(self.high)}" if self.high < INFINITE else ""
        return " and ".join(filter(None, (low, high)))


@dataclass(frozen=True)
class NotEmpty:
    """The lists that an option takes: of one or more."""

    def __contains__(self, value: Sized) -> bool:
        return len(value) > 0


def _digits(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


Count = Annotated[int, Range(1, 1_000_000_000)]
Batch = Annotated[int, Range(1, 65536)]  # images in a network at once
Width = Annotated[int, Range(1, 65536)]  # of a layer
Depth = Annotated[int, Range(1, 256)]  # of a network
PerClass = Annotated[int, Range(1, 100_000)]  # images
Whole = Annotated[int, Range(0, 1_000_000_000)]
Side = Annotated[int, Range(1, 8192)]  # in pixels
Distance = Annotated[int, Range(0, 8192)]  # in pixels
Tiles = Annotated[int, Range(1, 256)]  # images side by side in one
Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, open_low=True)]

Precision = Literal["auto", "no", "bf16"]
Compile = bool | Literal["auto"]
Format = Literal["imagefolder", "parquet", "webdataset", "ddranking"]
Projection = Literal["pca", "tsne"]
Sizes = PerClass | tuple[PerClass, ...]
Folders = Path | Annotated[list[Path], NotEmpty()]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of every options dataclass: its values are checked when it is made, in Python as on the command line.

    ``section`` is the prefix of its options in messages. ``check`` holds the rules between several options; it calls
    ``super().check()`` first. A class that a union chooses has a ``kind``, its name on the command line, and where its
    options stand in a section of their own there, that section's name is ``below``; ``order`` is the order of the flat
    options where it is not that of the fields, "..." being those that it does not name (see flat.py). ``above`` names
    the options that stand beside its section there instead of in it; ``short`` is the option that a text stands for
    where it is given in place of the section.
    """

    section: ClassVar[str] = ""
    kind: ClassVar[str | None] = None
    below: ClassVar[str | None] = None
    order: ClassVar[str] = ""
    above: ClassVar[tuple[str, ...]] = ()
    short: ClassVar[str | None] = None

    def __new__(cls, *args: Any, **options: Any) -> Any:
        unknown = [name for name in options if name not in {f.name for f in fields(cls)}]
        if unknown:
            raise ConfigError(_unknown(cls, unknown[0]))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            value = getattr(self, name)
            found = checked(hint, value, option_name(type(self), name))
            if found is not value:
                object.__setattr__(self, name, found)
        self.check()

    def check(self) -> None:
        """Rules between options."""


def cached(function: F) -> F:
    """``functools.cache``, by whose types a class of ours would not be hashable."""
    return cast(F, cache(function))


@cached
def hints(cls: type) -> dict[str, Any]:
    """The type of each option of a dataclass, with its metadata."""
    found = get_type_hints(cls, include_extras=True)
    return {f.name: found[f.name] for f in fields(cls) if f.init}


def option_name(cls: type, name: str) -> str:
    """``section.option``, as the command line has it."""
    flat = flat_of(hints(cls)[name])
    sections = [c.__dict__["section"] for c in cls.__mro__ if "section" in c.__dict__ and name in hints(c)]
    section = sections[0] if sections else ""
    return f"{section}.{(flat and flat.name) or name}".removeprefix(".")


@dataclass(frozen=True)
class Flat:
    """How an option of a union's member stands on the command line.

    Attributes:
        name: Its option there; null for the same name.
        default: Its value there where the member has no default.
        off: The value that means that the member is not chosen at all, where no option of its own says so.
    """

    name: str | None = None
    default: Any = None
    off: Any = None


def flat_of(hint: Any) -> Flat | None:
    extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((extra for extra in extras if isinstance(extra, Flat)), None)


def checked(hint: Any, value: Any, option: str) -> Any:
    """``value`` as the type of an option takes it.

    Raises:
        ConfigError: it does not fit.
    """
    try:
        return conform(hint, value)
    except TypeError as error:
        words = str(error)
    if isinstance(value, float) and abs(value) > LARGEST:
        words += f", up to {LARGEST:g} in size"
    choices = [str(one) for arm in arms(hint) if get_origin(arm) is Literal for one in get_args(arm)]
    return require(False, option, value, words, choices if isinstance(value, str) else ())


def conform(hint: Any, value: Any) -> Any:
    """``value`` as the type takes it: a list where a tuple is wanted becomes one, text a path, 1 the float 1.0.

    Raises:
        TypeError: it does not fit; the message is what was expected.
    """
    hint = BARE.get(hint, hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        try:
            found = conform(arguments[0], value)
        except TypeError:
            raise TypeError(expected(hint)) from None
        if all(found in bound for bound in arguments[1:] if isinstance(bound, (Range, NotEmpty))):
            return found
    elif origin in (Union, types.UnionType):
        for arm in arguments:
            if fits(arm, value):
                return conform(arm, value)
    elif origin is Literal:
        if any(type(value) is type(one) and value == one for one in arguments):
            return value
    elif isinstance(value, COLLECTIONS.get(origin, ())):
        return _conform_items(hint, value)
    elif _is_own_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, hint.__name__)
    elif _is_a(origin or hint, value):
        return _conform_plain(hint, value)
    raise TypeError(expected(hint))


def _conform_plain(hint: Any, value: Any) -> Any:
    """A value of a plain type: a path with the home folder for ~, a float of a whole number."""
    if hint is Path:
        return Path(os.path.expanduser(value))
    if hint is float and isinstance(value, Integral):
        if abs(int(value)) > 2**1000:
            raise TypeError(expected(hint))
        return float(value)
    return value


def _conform_items(hint: Any, value: Any) -> Any:
    """A list, tuple or mapping whose items are as the type takes them."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is dict:
        return {conform(arguments[0], name): conform(arguments[1], one) for name, one in value.items()}
    repeated = origin is list or arguments[-1] is Ellipsis
    if not repeated and len(value) != len(arguments):
        raise TypeError(expected(hint))
    kinds = [arguments[0]] * len(value) if repeated else arguments
    found = origin(conform(kind, one) for kind, one in zip(kinds, value, strict=True))
    return value if found == value and type(value) is origin else found


def _is_own_dataclass(hint: Any) -> bool:
    """Whether a type is a dataclass of a user, which is made of a mapping."""
    return isinstance(hint, type) and is_dataclass(hint) and not issubclass(hint, Options)


def _is_a(kind: Any, value: Any) -> bool:
    """Whether a value is of a plain type: an int is a float too, but a bool is neither."""
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind is Any or not isinstance(kind, type):
        return True
    return isinstance(value, (Path, str) if kind is Path else kind)


def read(hint: Any, value: Any) -> Any:
    """Text as what YAML reads in it, or as it is where the type takes only that; other values as they are."""
    if not isinstance(value, str) or hint is Any or not value.strip():
        return value
    try:
        found = load_yaml(value)
    except ValueError:
        return value
    collection = isinstance(found, (list, dict)) and any(kind in COLLECTIONS for kind in map(_origin, arms(hint)))
    number = isinstance(found, int | float) and not isinstance(found, bool)
    if number and str(found) != value.strip() and fits(hint, value):
        return value  # a name such as 01, which a number would not keep
    return value if not (collection or fits(hint, found)) and fits(hint, value) else found


def read_words(hint: Any, words: Sequence[str]) -> Any:
    """Words of the command line as the type takes them; a list is written ``1 5 10``, ``1,5,10`` or ``[1,5,10]``."""
    text, item = " ".join(words), item_of(hint)
    found = read(hint, text)
    if item is None or isinstance(found, (list, dict)) or found is None:
        return found
    parts = [part for word in words for part in _split(item, word)]
    if len(parts) == 1 and fits(hint, found):
        return found
    values = [read(item, part) for part in parts]
    return values if len(values) > 1 or fits(hint, values) else found


def _split(item: Any, word: str) -> list[str]:
    """The parts of ``1,5,10``; a text with a space, such as a class name, and an existing file are one."""
    whole = (" " in word and fits(item, word)) or (fits(item, Path()) and os.path.exists(word))
    return [word] if whole else [part.strip() for part in word.split(",") if part.strip()]


def item_of(hint: Any) -> Any:
    """The type of the items of a list that a type takes; None where it takes none."""
    if get_origin(hint) is Annotated:
        return item_of(get_args(hint)[0])
    for arm in arms(hint):
        if _origin(arm) in (tuple, list):
            return item_of(arm) if get_origin(arm) is Annotated else (get_args(arm) or (Any,))[0]
    return None


def _origin(hint: Any) -> Any:
    """What a type is without its metadata and its arguments."""
    return _origin(get_args(hint)[0]) if get_origin(hint) is Annotated else get_origin(hint) or hint


def fits(hint: Any, value: Any) -> bool:
    """Whether a type takes a value."""
    try:
        conform(hint, value)
    except (TypeError, ConfigError):
        return False
    return True


def build(cls: type, values: Mapping[str, Any], place: str) -> Any:
    """A dataclass of a user from values by name; text is read as its types want it.

    Raises:
        ConfigError: an unknown or missing name, or a value that does not fit.
    """
    types, found = hints(cls), {}
    check_names(place, values, types, [f.name for f in fields(cls) if f.init and is_required(f)])
    for name, value in values.items():
        inner = next(filter(_is_own_dataclass, arms(types[name])), None)
        if inner and isinstance(value := read(types[name], value), Mapping):
            found[name] = build(inner, value, f"{place}.{name}")
        else:
            found[name] = checked(types[name], read(types[name], value), f"{place}.{name}")
    try:
        return cls(**found)
    except (TypeError, ValueError) as error:  # of its own __post_init__
        raise ConfigError(f"{place} is {dict(values)}; {cls.__name__} refuses it: {error}") from error


def is_required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def check_names(place: str, values: Iterable[str], known: Iterable[str], required: Iterable[str]) -> None:
    """Refuse unknown names, and the lack of a required one."""
    names, known = list(values), list(known)
    for name in names:
        if name not in known:
            text = f"expected some of {', '.join(known)}" if known else "expected none: it has no options"
            raise ConfigError(f"{place} has no {name}; {text}.{did_you_mean(name, known)}")
    for name in required:
        if name not in names:
            raise ConfigError(f"{place} lacks {name}, which has no default; give it a value.")


COLLECTIONS: dict[Any, Any] = {tuple: (tuple, list), list: (tuple, list), dict: Mapping}
BARE: dict[Any, Any] = {tuple: tuple[Any, ...], list: list[Any], dict: dict[Any, Any]}
PLAIN = {
    Any: "any value",
    types.NoneType: "None",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    bool: "true or false",
}


def expected(hint: Any) -> str:
    """A type in words."""
    hint = BARE.get(hint, hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        text = " ".join([expected(arguments[0]), *(str(extra) for extra in arguments[1:] if isinstance(extra, Range))])
        if NotEmpty() in arguments[1:]:
            text = text.replace("a list", "a list of one or more", 1)
    elif origin in (Union, types.UnionType):
        text = " or ".join(map(expected, sorted(arguments, key=lambda arm: arm is not types.NoneType)))
    elif origin is Literal:
        text = f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    elif origin in (tuple, list):
        count = "" if origin is list or Ellipsis in arguments else f"{len(arguments)} of them, "
        text = f"a list ({count}each {' or '.join(expected(a) for a in dict.fromkeys(arguments) if a is not Ellipsis)})"
    elif origin is dict:
        text = f"a mapping of names to values (each {expected(arguments[1])})"
    else:
        text = PLAIN.get(hint) or f"{getattr(hint, '__name__', hint)}(...)"
    return text


def _unknown(cls: type, name: str) -> str:
    """Why an option is not taken, and where it is."""
    for field, hint in hints(cls).items():
        for arm in (arm for arm in arms(hint) if isinstance(arm, type) and issubclass(arm, Options)):
            for own, kind in hints(arm).items():
                flat = flat_of(kind)
                if name in (own, flat and flat.name) and (arm.kind or own in arm.above):
                    return f"{cls.__name__} has no {name}; expected it as {field}={arm.__name__}({own}=...)."
    names = hints(cls)
    return f"{cls.__name__} has no {name}; expected some of {', '.join(names)}.{did_you_mean(name, names)}"


def members(hint: Any) -> tuple[type[Options], ...]:
    """The options classes among which a field chooses, none for a field that is no such union."""
    return tuple(arm for arm in arms(hint) if isinstance(arm, type) and issubclass(arm, Options) and arm.kind)


def arms(hint: Any) -> tuple[Any, ...]:
    """The types that a union joins; any other type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def shown(value: Any) -> str:
    """A value as a message has it, cut where it is long."""
    chosen = kind_of(value)  # a choice with options of its own is named as on the command line
    text = repr(str(value) if isinstance(value, Path) else value if chosen is None else chosen)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def require(condition: bool, option: str, value: object, expected: str, choices: Iterable[str] = ()) -> None:
    """Refuse a value; of ``choices`` the message proposes the closest."""
    if not condition:
        raise ConfigError(f"{option} is {shown(value)}; expected {expected}.{did_you_mean(value, choices)}")


def check_sizes(ipc: Sizes, option: str) -> None:
    found = ipc_sizes(ipc)
    require(len(found) > 0, option, ipc, "at least one number")
    require(len(set(found)) == len(found), option, ipc, "each number once")


def as_tuple(value: Any) -> tuple[Any, ...]:
    """One value or several, as several."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def ipc_sizes(ipc: Sizes) -> tuple[int, ...]:
    """The IPC numbers, ascending."""
    return (ipc,) if isinstance(ipc, int) else tuple(sorted(ipc))


def kind_of(choice: Any) -> Any:
    """The name that a choice has on the command line."""
    return choice.kind if isinstance(choice, Options) else choice


def stage_options(config: Any, kind: type) -> Any:
    """The fields of ``config`` that belong to its base ``kind``, as a plain ``kind``: a command's stage options."""
    return kind(**{f.name: getattr(config, f.name) for f in fields(kind)})
