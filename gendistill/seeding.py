"""Randomness as an argument: every draw comes from a stream named by its purpose.

A stream is the pair (seed, keys). Because the keys hold the step, class or image index, a draw depends neither on
what was drawn before it nor on batch size or number of processes, and a resumed run needs no saved generator state.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

Key = str | int


def derive(seed: int, *keys: Key) -> int:
    """A 63-bit seed for the stream ``keys`` below ``seed``: the head of BLAKE2b over their length-prefixed text."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *keys):
        text = f"{type(part).__name__}:{part}".encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return int.from_bytes(digest.digest(), "big") >> 1


def torch_rng(seed: int, *keys: Key) -> torch.Generator:
    """A CPU generator at the start of its stream; draw on the CPU and move, so that devices agree."""
    import torch

    return torch.Generator("cpu").manual_seed(derive(seed, *keys))


def numpy_rng(seed: int, *keys: Key) -> np.random.Generator:
    """The same stream key for NumPy."""
    import numpy as np

    return np.random.default_rng(derive(seed, *keys))
