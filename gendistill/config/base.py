"""What every stage's options share: their checks, and how they are read and told."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from gendistill.errors import ConfigError

Precision = Literal["auto", "no", "bf16"]
Compile = bool | Literal["auto"]
Format = Literal["imagefolder", "parquet", "webdataset", "ddranking"]
Projection = Literal["pca", "tsne"]
Sizes = int | tuple[int, ...]


def require(condition: bool, option: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{option} is {value!r}; expected {expected}.")


def at_least(config: Any, section: str, low: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(value >= low, f"{section}.{name}", value, f"a number of at least {low:g}")


def in_unit(config: Any, section: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(0 <= value <= 1, f"{section}.{name}", value, "a number from 0 to 1")


def check_sizes(config: Any, section: str) -> None:
    found = ipc_sizes(config.ipc)
    require(len(found) > 0, f"{section}.ipc", config.ipc, "at least one number")
    require(all(ipc >= 1 for ipc in found), f"{section}.ipc", config.ipc, "images per class of at least 1")
    require(len(set(found)) == len(found), f"{section}.ipc", config.ipc, "each number once")


def as_tuple(value: Any) -> tuple[Any, ...]:
    """One value or several, as several."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def ipc_sizes(ipc: Sizes) -> tuple[int, ...]:
    """The IPC numbers, ascending."""
    return (ipc,) if isinstance(ipc, int) else tuple(sorted(ipc))


def stage_options(config: Any, kind: type) -> Any:
    """The fields of ``config`` that belong to its base ``kind``, as a plain ``kind``: a command's stage options."""
    return kind(**{f.name: getattr(config, f.name) for f in fields(kind)})


def to_dict(config: Any) -> Any:
    """Plain data (for YAML and JSON) of a config: paths as text, tuples as lists."""
    if is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, (tuple, list)):
        return [to_dict(v) for v in config]
    return str(config) if isinstance(config, Path) else config
