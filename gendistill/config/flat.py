"""The flat form of options, which the command line, YAML and files have. No torch in here.

In Python a choice with options of its own is an object: ``SampleConfig(guidance=ClassifierFree(scale=4.0))``. Flat, it
is a name, with its options at the same level: ``guidance: cfg``, ``guidance_scale: 4.0``. ``flatten`` makes the
dataclass of the parsed command line, ``unflatten`` makes options of it, and ``to_dict`` their flat form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, make_dataclass, replace
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from gendistill.config.base import Options, arms, cached, flat_of, hints, kind_of, members, require, shown

T = TypeVar("T", bound=Options)


@dataclass(frozen=True)
class Option:
    """One option of the flat form; ``owners`` are the (field, kind) pairs that it belongs to, none for a plain one."""

    type: Any
    default: Any
    text: str
    owners: tuple[tuple[str, str], ...] = ()


@cached
def options_of(cls: type[Options]) -> dict[str, Option]:
    """The flat options of a class, in their order."""
    found: dict[str, Option] = {}
    texts, types = _texts(cls), hints(cls)
    for one in fields(cls):
        chosen, default = members(types[one.name]), _default(one)
        if not chosen:
            if nested := _nested(types[one.name]):
                found |= {name: options_of(nested)[name] for name in nested.above}
            found[one.name] = Option(_plain(types[one.name]), _flat_value(default), texts.get(one.name, ""))
            continue
        if not _by_options(types[one.name]):
            kinds = (*_names(types[one.name]), *(str(member.kind) for member in chosen))
            found[one.name] = Option(Literal[kinds], kind_of(default), texts.get(one.name, ""))
        for member in chosen:
            for name, option in _of_member(one.name, member).items():
                owners = found[name].owners if name in found else ()
                found[name] = replace(found.get(name, option), owners=owners + option.owners)
    place = {name: at for at, name in enumerate(cls.order.split())}
    return dict(sorted(found.items(), key=lambda item: place.get(item[0], place.get("...", len(place)))))


def _of_member(owner: str, member: type[Options]) -> dict[str, Option]:
    """The flat options of one that can be chosen: in its own section, or at the level of the choice."""
    owners = ((owner, str(member.kind)),)
    if member.below:
        return {member.below: Option(flatten(member), to_flat(member()), (member.__doc__ or "").split("\n")[0], owners)}
    found, texts, types = {}, _texts(member), hints(member)
    for one in fields(member):
        flat, default = flat_of(types[one.name]), _default(one)
        if flat and (default is MISSING or flat.off is not None):
            default = flat.off if flat.off is not None else flat.default
        found[_flat_name(member, one.name)] = Option(_plain(types[one.name]), default, texts.get(one.name, ""), owners)
    return found


@cached
def flatten(cls: type[Options]) -> type:
    """The dataclass of the flat options of ``cls``, with their plain types and their help; ``cls`` where it is one."""
    if not any(_has_flat_form(arm) for hint in hints(cls).values() for arm in arms(hint)):
        return cls
    lines, made = [], []
    for name, option in options_of(cls).items():
        if name in cls.above:
            continue
        kinds = ", ".join(kind for _, kind in option.owners if " " not in kind)
        text = f"{kinds}: {option.text[:1].lower()}{option.text[1:]}" if kinds else option.text
        lines.append(f"    {name}: {text}")
        make = partial(_instance, option.type, option.default)
        made.append((name, option.type, field() if option.default is MISSING else field(default_factory=make)))
    doc = "\n".join([(cls.__doc__ or "").split("\n\n")[0], "", "Attributes:", *lines])
    return make_dataclass(cls.__name__, made, frozen=True, kw_only=True, namespace={"__doc__": doc})


def unflatten(cls: type[T], flat: Mapping[str, Any]) -> T:
    """The options that a flat form stands for; what it leaves out has its default.

    Raises:
        ConfigError: a value is not taken, or belongs to a kind that was not chosen.
    """
    known, types = options_of(cls), hints(cls)
    flat = {name: option.default for name, option in known.items() if option.default is not MISSING} | dict(flat)
    unknown = {name: flat[name] for name in flat if name not in known}
    chosen = {name: _chosen(name, types[name], flat, known) for name in types if members(types[name])}
    pairs = {(name, getattr(kind, "kind", kind)) for name, kind in chosen.items()}
    for name, option in known.items():
        if option.owners and not pairs & set(option.owners) and _as_data(flat[name]) != _as_data(option.default):
            owners = " or ".join(kind if " " in kind else f"{owner} {kind}" for owner, kind in option.owners)
            text = f"{shown(option.default)}, as it belongs to {owners}"
            require(False, f"{cls.section}.{name}".removeprefix("."), flat[name], text)
    values: dict[str, Any] = {}
    for name, hint in types.items():
        member = chosen.get(name)
        if isinstance(member, type) and issubclass(member, Options):
            below = flat[member.below] if member.below else {n: flat[_flat_name(member, n)] for n in hints(member)}
            values[name] = unflatten(member, below) if member.below else member(**below)
        elif name in chosen:
            values[name] = member
        elif name in flat:
            nested, values[name] = _nested(hint), flat[name]
            if nested and isinstance(flat[name], Mapping):
                values[name] = unflatten(nested, {**flat[name], **{above: flat[above] for above in nested.above}})
    return cls(**values, **unknown)


def to_flat(config: Options) -> dict[str, Any]:
    """The flat options of ``config`` by name."""
    cls = type(config)
    found = {name: option.default for name, option in options_of(cls).items()}
    written: set[str] = set()
    for name, hint in hints(cls).items():
        value = getattr(config, name)
        if not members(hint):
            found[name] = _flat_value(value)
            found |= {above: found[name].pop(above) for above in getattr(value, "above", ())}
            continue
        if not _by_options(hint):
            found[name] = kind_of(value)
        if isinstance(value, Options):
            own = {_flat_name(type(value), n): getattr(value, n) for n in hints(type(value))}
            for flat, given in ({value.below: to_flat(value)} if value.below else own).items():
                same = flat not in written or found[flat] == given
                require(same, f"{cls.section}.{flat}", given, f"{found[flat]!r}, as the other choice has it")
                found[flat] = given
                written.add(flat)
    return found


def to_dict(config: Any) -> Any:
    """Plain data (for YAML and JSON) of a config, in the flat form: paths as text, tuples as lists."""
    return _as_data(to_flat(config) if isinstance(config, Options) else config)


def _as_data(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_data(one) for name, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _as_data(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, (tuple, list)):
        return [_as_data(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _has_flat_form(kind: Any) -> bool:
    """Whether options stand otherwise on the command line than in Python."""
    if not (isinstance(kind, type) and issubclass(kind, Options)):
        return False
    return kind.kind is not None or flatten(kind) is not kind


def _flat_value(value: Any) -> Any:
    return to_flat(value) if isinstance(value, Options) else value


def _instance(kind: Any, value: Any) -> Any:
    """A flat section as its flat dataclass."""
    if not (isinstance(kind, type) and is_dataclass(kind) and isinstance(value, Mapping)):
        return value
    return kind(**{one.name: _instance(one.type, value[one.name]) for one in fields(kind)})


def _default(one: Field[Any]) -> Any:
    return one.default_factory() if one.default_factory is not MISSING else one.default


def _flat_name(member: type[Options], name: str) -> str:
    flat = flat_of(hints(member)[name])
    return (flat and flat.name) or name


def _names(hint: Any) -> tuple[str, ...]:
    """The kinds of a union that have no options of their own."""
    return tuple(name for arm in arms(hint) if get_origin(arm) is Literal for name in get_args(arm))


def _by_options(hint: Any) -> bool:
    """Whether no flat option names the choice: a member is chosen by its own options, and null by none of them."""
    return type(None) in arms(hint)


def _chosen(name: str, hint: Any, flat: Mapping[str, Any], known: Mapping[str, Option]) -> Any:
    """The member, or the name or null that stands for none, that a flat form chooses."""
    if not _by_options(hint):
        return next((member for member in members(hint) if member.kind == flat[name]), flat[name])
    for member in members(hint):
        options = {_flat_name(member, one): flat_of(kind) for one, kind in hints(member).items()}
        switches = [one for one, own in options.items() if own and own.off is not None]
        if any(flat[one] != known[one].default for one in switches or options):
            return member
    return None


def _nested(hint: Any) -> type[Options] | None:
    found = [arm for arm in arms(hint) if isinstance(arm, type) and issubclass(arm, Options) and not arm.kind]
    return found[0] if found else None


def _plain(hint: Any) -> Any:
    """A type without its metadata, options in their flat form."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _plain(arguments[0])
    if isinstance(hint, type) and issubclass(hint, Options):
        return flatten(hint)
    if origin in (tuple, list, dict):
        return origin[tuple(argument if argument is Ellipsis else _plain(argument) for argument in arguments)]
    return reduce(or_, map(_plain, arms(hint))) if len(arms(hint)) > 1 else hint


def _texts(cls: type) -> dict[str, str]:
    """The help of each option, from the docstrings of a class and its bases."""
    from docstring_parser import parse

    own = [base.__doc__ for base in reversed(cls.__mro__) if base.__doc__ and is_dataclass(base)]
    return {one.arg_name: " ".join((one.description or "").split()) for doc in own for one in parse(doc).params}
