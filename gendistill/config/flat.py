"""The flat form of options, which the command line, YAML and files have. No torch in here.

In Python a choice with options of its own is an object: ``SampleConfig(guidance=ClassifierFree(scale=4.0))``. Flat, it
is a name, with its options at the same level: ``guidance: cfg``, ``guidance_scale: 4.0``. ``options_of`` lists these
options, ``unflatten`` makes options of their values, and ``to_dict`` is the inverse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from gendistill.config.base import (
    Options,
    arms,
    build,
    cached,
    check_names,
    checked,
    flat_of,
    hints,
    kind_of,
    members,
    require,
    shown,
)

T = TypeVar("T", bound=Options)


@dataclass(frozen=True)
class Option:
    """One option of the flat form.

    Attributes:
        type: Its type, with its metadata.
        default: Its flat default; MISSING where it has none.
        text: Its line of help.
        owners: The (field, kind) pairs that it belongs to, none for a plain one.
        section: The options below it, where it is a section.
    """

    type: Any
    default: Any
    text: str
    owners: tuple[tuple[str, str], ...] = ()
    section: type[Options] | None = None


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
            text = texts.get(one.name, "")
            found[one.name] = Option(types[one.name], _flat_value(default), text, section=nested)
            continue
        if not _by_options(types[one.name]):
            kinds = (*_names(types[one.name]), *(str(member.kind) for member in chosen))
            hint = Literal[kinds] | None if type(None) in arms(types[one.name]) else Literal[kinds]
            found[one.name] = Option(hint, kind_of(default), texts.get(one.name, ""))
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
        text = (member.__doc__ or "").split("\n")[0]
        return {member.below: Option(member, to_flat(member()), text, owners, section=member)}
    found, texts, types = {}, _texts(member), hints(member)
    for one in fields(member):
        flat, default = flat_of(types[one.name]), _default(one)
        if flat and (default is MISSING or flat.off is not None):
            default = flat.off if flat.off is not None else flat.default
        found[_flat_name(member, one.name)] = Option(types[one.name], default, texts.get(one.name, ""), owners)
    return found


def registered_options(kind: type | None, given: Mapping[str, Any] | None, place: str, owner: str) -> Any:
    """Options by name as the dataclass that a method or refiner was registered with; None where it has none.

    Raises:
        ConfigError: an unknown name or a value of another type, or values where there are no options.
    """
    if kind is None:
        require(not given, place, given, f"None with {owner}, which has none")
        return None
    return unflatten(kind, given or {}) if issubclass(kind, Options) else build(kind, given or {}, place)


def all_options(cls: type[Options], prefix: str = "", elsewhere: Sequence[str] = ()) -> Iterator[tuple[str, Option]]:
    """Every flat option by its dotted name, those of sections after the section; ``elsewhere`` are left out."""
    for name, option in options_of(cls).items():
        if name not in elsewhere:
            yield prefix + name, option
            if option.section:
                yield from all_options(option.section, f"{prefix}{name}.", option.section.above)


def unflatten(cls: type[T], flat: Mapping[str, Any]) -> T:
    """The options that a flat form stands for; what it leaves out has its default.

    Raises:
        ConfigError: an unknown or missing name, a value that does not fit, or one of a kind that was not chosen.
    """
    return _assemble(cls, complete(cls, flat))


def complete(cls: type[Options], flat: Mapping[str, Any], elsewhere: Sequence[str] = ()) -> dict[str, Any]:
    """Every flat option by name, those of sections too; ``elsewhere`` are no options here."""
    known = {name: option for name, option in options_of(cls).items() if name not in elsewhere}
    check_names(cls.section or "The command", flat, known, [n for n, one in known.items() if one.default is MISSING])
    found = {name: option.default for name, option in known.items()}
    for name, given in flat.items():
        option, place = known[name], f"{cls.section}.{name}".removeprefix(".")
        found[name] = value = from_short(option, given)
        if option.section and (value is not None or type(None) not in arms(option.type)):
            require(isinstance(value, Mapping), place, value, "its options below it")
            found[name] = complete(option.section, value, option.section.above)
        elif all(get_origin(arm) is Literal or arm is type(None) for arm in arms(option.type)):
            checked(option.type, value, place)
    return found


def from_short(option: Option, value: Any) -> Any:
    """The value of an option; a text in place of a section's options as the one that it stands for."""
    short = option.section.short if option.section else None
    return {short: value} if short and isinstance(value, str) else value


def _assemble(cls: type[T], flat: Mapping[str, Any]) -> T:
    """Options of their complete flat form."""
    known, types = options_of(cls), hints(cls)
    chosen = {name: _chosen(name, types[name], flat, known) for name in types if members(types[name])}
    pairs = {(name, getattr(kind, "kind", kind)) for name, kind in chosen.items()}
    for name, option in known.items():
        if option.owners and not pairs & set(option.owners) and as_data(flat[name]) != as_data(option.default):
            owners = " or ".join(kind if " " in kind else f"{owner} {kind}" for owner, kind in option.owners)
            text = f"{shown(option.default)}: it is used only with {owners}"
            require(False, f"{cls.section}.{name}".removeprefix("."), flat[name], text)
    values: dict[str, Any] = {}
    for name, hint in types.items():
        member = chosen.get(name)
        if isinstance(member, type) and issubclass(member, Options):
            own = {one: flat[_flat_name(member, one)] for one in hints(member)} if not member.below else {}
            values[name] = _assemble(member, flat[member.below]) if member.below else member(**own)
        elif name in chosen:
            values[name] = member
        else:
            nested, values[name] = _nested(hint), flat[name]
            if nested and flat[name] is not None:
                values[name] = _assemble(nested, {**flat[name], **{above: flat[above] for above in nested.above}})
    return cls(**values)


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
    return as_data(to_flat(config) if isinstance(config, Options) else config)


def as_data(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: as_data(one) for name, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: as_data(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, (tuple, list)):
        return [as_data(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _flat_value(value: Any) -> Any:
    return to_flat(value) if isinstance(value, Options) else value


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
    return type(None) in arms(hint) and not _names(hint)


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


def _texts(cls: type) -> dict[str, str]:
    """The help of each option, from the docstrings of a class and its bases."""
    from docstring_parser import parse

    own = [base.__doc__ for base in reversed(cls.__mro__) if base.__doc__ and is_dataclass(base)]
    return {one.arg_name: " ".join((one.description or "").split()) for doc in own for one in parse(doc).params}
