"""RealData of arrays and PyTorch datasets: layouts, labels, splits, refusals; what its repr says."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from gendistill.data.dataset import RealData
from gendistill.data.sources import load_data
from gendistill.errors import ConfigError, DataError

DIGITS = load_digits()
PIXELS = np.round(DIGITS.images * (255 / 16)).astype(np.uint8)
NAMES = ("cat", "dog")


class Samples:
    """A dataset as torchvision's are: ``classes``, and (image, label) by position."""

    classes = NAMES

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]


def colours(count=20, size=8, channels=3):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@pytest.mark.parametrize(
    "images",
    [
        PIXELS,
        PIXELS[..., None],
        PIXELS[:, None],
        torch.from_numpy(PIXELS),
        (PIXELS / 255).astype(np.float32),
        torch.from_numpy(PIXELS)[:, None].double() / 255,
    ],
    ids=["NHW", "NHWC", "NCHW", "torch", "float", "double"],
)
def test_arrays_of_the_digits_are_the_built_in_digits(images):
    data = RealData.from_arrays(images, DIGITS.target)
    assert data.fingerprint() == load_data(name="digits").fingerprint()
    assert data.classes == tuple(map(str, range(10)))


def test_channels_last_and_first_are_the_same_images():
    images, labels = colours(), [0, 1] * 10
    last, first = (RealData.from_arrays(one, labels, NAMES) for one in (images, images.transpose(0, 3, 1, 2)))
    assert last.fingerprint() == first.fingerprint()
    assert (last.channels, last.image_size) == (3, 8)


@pytest.mark.parametrize("labels", [[1, 0] * 10, ["dog", "cat"] * 10, np.array(["dog", "cat"] * 10)])
def test_labels_are_names_or_positions(labels):
    data = RealData.from_arrays(colours(), labels, NAMES, test=(colours(4), labels[:4]))
    assert data.classes == NAMES
    assert data.test.labels.tolist() == [1, 0, 1, 0]
    assert len(data.test) + len(data.train) + len(data.validation) == 24


def test_without_classes_the_distinct_labels_are_sorted():
    assert RealData.from_arrays(colours(), ["b", "a"] * 10).classes == ("a", "b")
    data = RealData.from_arrays(colours(), [10, 9] * 10, test=(colours(2), [9, 10]))
    assert (data.classes, data.test.labels.tolist()) == (("9", "10"), [0, 1])


def test_splits_that_are_given_stay_as_they_are():
    held = colours(6), [0, 1] * 3
    data = RealData.from_arrays(colours(), [0, 1] * 10, NAMES, test=held, validation=held)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 6, 6)


def test_images_are_copies():
    images = torch.from_numpy(colours())
    data = RealData.from_arrays(images, [0, 1] * 10, NAMES, test=(images, [0, 1] * 10))
    print_before = data.test.images.clone()
    images.zero_()
    assert torch.equal(data.test.images, print_before)


def test_images_are_resized_as_files_are(tmp_path):
    images, labels = colours(size=12), [0, 1] * 10
    for i, image in enumerate(images):
        folder = tmp_path / NAMES[labels[i]]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:03}.png")
    files = load_data(name=str(tmp_path), image_size=8)
    order = np.argsort(labels, kind="stable")
    assert RealData.from_arrays(images[order], np.array(labels)[order], NAMES, image_size=8).fingerprint() == (
        files.fingerprint()
    )


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (colours(channels=4), [0, 1] * 10, {}, r"shape \(20, 8, 8, 4\); expected .* 1 or 3 channels"),
        (colours()[0, :, :, 0], [0] * 8, {}, r"expected \(N,H,W\)"),
        (colours().astype(np.int64), [0, 1] * 10, {}, "int64; expected uint8"),
        (colours().astype(np.float32), [0, 1] * 10, {}, r"float from 0 to 255; expected float in \[0, 1\]"),
        (colours() / 127.5 - 1, [0, 1] * 10, {}, "Undo their normalisation"),
        (np.full((20, 8, 8), np.nan), [0, 1] * 10, {}, "float from nan"),
        (colours()[:, :, :6], [0, 1] * 10, {}, "6x8 pixels; expected square ones. Give image_size"),
        (colours(), [0, 1] * 9, {}, "expected 20 integers or names"),
        (colours(), [0.0, 1.0] * 10, {}, "expected 20 integers or names"),
        (colours(), [0, 2] * 10, {}, "No class has the label 2; the classes are cat, dog"),
        (colours(), ["cat", "cow"] * 10, {}, "No class has the label 'cow'"),
        (colours(), [0] * 20, {}, "Empty class in arrays: no readable training image of dog"),
        (colours(), [0, 1] * 10, {"classes": ("cat", "cat")}, "expected each name once"),
        (colours(), [0, 1] * 10, {"test": (colours(size=6), [0, 1] * 10)}, "expected the same. Give image_size"),
    ],
)
def test_what_cannot_be_read_is_refused(images, labels, options, message):
    with pytest.raises(DataError, match=message):
        RealData.from_arrays(images, labels, **{"classes": NAMES, **options})


def test_fractions_and_sizes_are_checked_as_options_are():
    for option, value in (("test_fraction", 1.5), ("validation_fraction", 0), ("image_size", 2)):
        with pytest.raises(ConfigError, match=f"data.{option} is {value}"):
            RealData.from_arrays(colours(), [0, 1] * 10, NAMES, **{option: value})


def test_a_dataset_of_pillow_images_tensors_or_arrays_is_that_of_their_arrays():
    images, labels = colours(), [0, 1] * 10
    expected = RealData.from_arrays(images, labels, NAMES, test=(images[:4], labels[:4]))
    planes = torch.from_numpy(images).movedim(3, 1)
    for form in ([Image.fromarray(image) for image in images], images, planes, planes / 255):
        data = RealData.from_dataset(Samples(form, labels), test=Samples(form[:4], labels[:4]))
        assert data.fingerprint() == expected.fingerprint()
        assert data.name == "Samples"
    plain = RealData.from_dataset(TensorDataset(planes, torch.tensor(labels)), classes=NAMES, name="mine", split_seed=1)
    assert (plain.name, plain.classes) == ("mine", NAMES)
    assert plain.fingerprint() == RealData.from_arrays(images, labels, NAMES, split_seed=1).fingerprint()


def test_a_dataset_of_several_sizes_needs_one():
    images = [Image.fromarray(colours(1, size)[0]) for size in (8, 10) * 10]
    with pytest.raises(DataError, match="sizes 8x8, 10x10; expected one"):
        RealData.from_dataset(Samples(images, [0, 1] * 10))
    assert RealData.from_dataset(Samples(images, [0, 1] * 10), image_size=8).image_size == 8
    images[0] = Image.new("RGB", (8, 9))
    with pytest.raises(DataError, match="8x9 pixels; expected square"):
        RealData.from_dataset(Samples(images, [0, 1] * 10))


def test_images_whose_black_and_white_nothing_says_are_refused():
    images = [Image.fromarray(colours(1)[0, :, :, 0].astype(np.float32))] * 20
    with pytest.raises(DataError, match=r"mode F, .* Convert the images to float in \[0, 1\]"):
        RealData.from_dataset(Samples(images, [0, 1] * 10))


def test_grey_and_colour_images_of_one_dataset_are_colour():
    images = [Image.fromarray(colours(1)[0]), Image.new("L", (8, 8))] * 10
    assert RealData.from_dataset(Samples(images, [0, 1] * 10)).channels == 3


def test_a_repr_is_one_short_line():
    data = load_data(name="digits")
    assert repr(data) == (
        f"RealData('digits', 10 classes, 1211/136/450 images of 1x8x8, fingerprint {data.fingerprint()[:13]})"
    )
    assert repr(data.train) == "Split(1211 images of 1x8x8)"
