"""Work that several processes share. All of them call these functions, with the same arguments and in the same order.

What is shared is exact: a part is computed by one process just as a single process computes it, and passed on as it is.
Only ``add_up`` rounds, as sums in another order do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cache
from itertools import count as count_from
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gendistill.errors import ConfigError
from gendistill.runtime import processes

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_lists = count_from()  # numbers what is claimed, alike in all processes


def world() -> int:
    """How many processes run together."""
    return int(processes().num_processes)


def share(number: int) -> range:
    """Which of ``number`` parts this process computes where each process has a fixed share: every n-th one."""
    state = processes()
    return range(state.process_index, number, state.num_processes)


def require_share(classes: int) -> None:
    """Raises ConfigError where matching, which shares the classes, would leave a process without one."""
    if world() > classes:
        raise ConfigError(f"{world()} processes share the matching of {classes} classes; expected at most as many.")


def claimed(items: Sequence[T]) -> Iterator[T]:
    """Those of ``items`` that this process is the first to ask for: whoever is free takes the next one."""
    if world() == 1:
        yield from items
        return
    name, store = f"claimed/{next(_lists)}", _store()
    while (number := store.add(name, 1) - 1) < len(items):
        yield items[number]


def gathered(own: Mapping[K, T]) -> dict[K, T]:
    """What all processes have, each under keys of its own; tensors have to be on the CPU."""
    if world() == 1:
        return dict(own)
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, dict(own))
    return {key: value for one in found for key, value in one.items()}


def shared_map(function: Callable[[int], T], number: int) -> list[T]:
    """``[function(0), ..., function(number - 1)]``, each computed by one process; results have to be on the CPU."""
    found = gathered({i: function(i) for i in share(number)})
    return [found[i] for i in range(number)]


def most(value: float) -> float:
    """The largest ``value`` that any process has."""
    return max(gathered({processes().process_index: value}).values())


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one type by their sums over all processes, in one exchange."""
    if world() == 1 or not tensors:
        return
    joined = torch.cat([one.flatten() for one in tensors])
    dist.all_reduce(joined)
    for one, total in zip(tensors, joined.split([one.numel() for one in tensors]), strict=True):
        one.copy_(total.view_as(one))


def is_first_to_fail() -> bool:
    """Whether no other process has failed yet; the first one reports the failure of all."""
    return bool(_store().add("failed", 1) == 1)


def is_lost_connection(error: BaseException) -> bool:
    """Whether the error says that another process has gone."""
    lost = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in lost)
    )


@cache
def _store() -> dist.Store:
    """What all processes can read and write: another connection to the store at which they met.

    The launcher keeps it, or without one the first process. A launcher that starts them again keeps the old one, so
    names begin with the number of the attempt.
    """
    processes()
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"gendistill/{attempt}", dist.TCPStore(*place, is_master=False, wait_for_workers=False))
