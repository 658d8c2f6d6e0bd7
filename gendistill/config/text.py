"""YAML as options are written in it: plain values, lists and mappings, each key once. No torch in here."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

DEEPEST = 32  # lists and mappings in each other
TOO_DEEP = f"lists or mappings stand in each other more than {DEEPEST} deep, or in themselves; expected a few levels"
MERGE = "tag:yaml.org,2002:merge"
PLAIN_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, names are text, a date is text, and a key that stands twice is refused."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        names = [(str(self.construct_object(key, deep=True)), key) for key, _ in node.value if key.tag != MERGE]
        taken = set()
        for name, key in names:
            if name in taken:
                raise ValueError(f"{name} stands twice, again in line {key.start_mark.line + 1}; expected it once")
            taken.add(name)
        return {str(name): value for name, value in super().construct_mapping(node, deep).items()}


def _refuse(_: Any, node: Any) -> Any:
    raise ValueError(
        f"line {node.start_mark.line + 1} holds a value of the type {node.tag.rpartition(':')[2]}; expected text, "
        "a number, true, false, null, a list or a mapping"
    )


_SCIENTIFIC = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag and tag.rpartition(":")[2] in PLAIN_TAGS
} | {None: _refuse}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+.0123456789"))


def load_yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        ValueError: it is no YAML, or more than plain values; the message is one line.
    """
    try:
        found = yaml.load(text.removeprefix("\ufeff"), _Loader)
        _check_depth(found, (), set())
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return found


def _check_depth(value: Any, above: tuple[int, ...], checked: set[int]) -> None:
    if not isinstance(value, (dict, list)) or (id(value) in checked and id(value) not in above):
        return
    if len(above) >= DEEPEST or id(value) in above:
        raise ValueError(TOO_DEEP)
    checked.add(id(value))
    for one in value.values() if isinstance(value, dict) else value:
        _check_depth(one, (*above, id(value)), checked)
