"""Packing: tiles in order, classes kept, and the inverse of decoding as far as pixels allow."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill.errors import ConfigError
from gendistill.refine.refiner import pack
from gendistill.surrogate.multi_formation import decode
from gendistill.surrogate.set import SurrogateSet


def flat(labels, side=8):
    """A set of one-coloured images, colour i for image i."""
    labels = torch.tensor(labels)
    colours = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None] * 3
    return SurrogateSet(colours.expand(-1, 3, side, side).clone(), labels, ("ant", "bee"))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(6, 13))
def test_flat_images_come_back_from_their_tiles_class_by_class(factor, ipc, side):
    count = ipc * factor**2
    whole = flat([0, 1] * count, side)  # stored by turns
    packed = pack(whole, factor)
    assert (packed.factor, packed.ipc, len(packed.split)) == (factor, ipc, 2 * count)
    assert packed.labels.tolist() == [0] * ipc + [1] * ipc
    expected = torch.cat([whole.of_class(0), whole.of_class(1)])
    assert torch.equal(packed.split.images, expected)


def test_smooth_images_survive_packing_nearly():
    ramp = torch.linspace(0, 255, 16).round().to(torch.uint8).repeat(16, 1).expand(4, 1, 16, 16)
    packed = pack(SurrogateSet(ramp.clone(), torch.zeros(4, dtype=torch.long), ("ant",)), 2)
    assert (packed.split.images.int() - ramp.int()).abs().max() <= 13  # of 17 a pixel, at the border
    assert torch.equal(decode(packed.images, 2), packed.split.images)


def test_numbers_that_do_not_fill_tiles_are_refused():
    with pytest.raises(ConfigError, match="'ant' has 5 images; expected a multiple of 4"):
        pack(flat([0] * 5 + [1] * 4), 2)
    with pytest.raises(ConfigError, match="packed by 2 already"):
        pack(pack(flat([0] * 4 + [1] * 4), 2), 2)
