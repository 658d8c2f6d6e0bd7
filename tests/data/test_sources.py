"""Folders and parquet files as users have them, damaged ones too."""

import io
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gendistill.data.dataset import Split, stratified_split
from gendistill.data.sources import load_data
from gendistill.errors import ConfigError, DataError
from tests.data.folders import SIZE, as_set, everything, fill, load, make, of_label, pixels, stored

# layouts


@pytest.mark.parametrize("held_out", ["test", "val", "validation", "Valid"])
def test_train_and_test_folders(tmp_path, held_out):
    train = [fill(tmp_path / "train" / name, 6, seed=i) for i, name in enumerate(("cat", "dog"))]
    test = [fill(tmp_path / held_out / name, 3, seed=5 + i) for i, name in enumerate(("cat", "dog"))]
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.problems == ()
    assert data.test.counts(2) == [3, 3]
    assert as_set(data.test.images) == stored(test[0] + test[1])
    for label in (0, 1):
        assert of_label(data, label) == stored(train[label] + test[label])


def test_a_flat_folder_is_split_in_three(tmp_path):
    data = load(make(tmp_path, ("a", "b", "c"), count=20), test_fraction=0.25, validation_fraction=0.2)
    assert data.test.counts(3) == [5, 5, 5]
    assert data.validation.counts(3) == [3, 3, 3]
    assert data.train.counts(3) == [12, 12, 12]
    assert len(as_set(everything(data)[0])) == 60


def test_a_flat_folder_is_split_alike_every_time_and_otherwise_for_another_seed(tmp_path):
    make(tmp_path, count=20)
    assert load(tmp_path).fingerprint() == load(tmp_path).fingerprint()
    assert as_set(load(tmp_path).test.images) != as_set(load(tmp_path, split_seed=1).test.images)


def test_images_are_found_below_the_class_folder_and_other_files_ignored(tmp_path):
    make(tmp_path)
    deeper = fill(tmp_path / "cat" / "camera 2", 2, seed=9)
    (tmp_path / "cat" / "notes.txt").write_text("none")
    (tmp_path / "LICENSE").write_text("none")
    data = load(tmp_path)
    assert stored(deeper) < of_label(data, 0)
    assert len(of_label(data, 0)) == 8
    assert data.problems == ()


def test_train_may_be_the_name_of_a_class(tmp_path):
    assert load(make(tmp_path, ("bus", "train"))).classes == ("bus", "train")


def test_hidden_folders_are_no_classes(tmp_path):
    make(tmp_path / "train")
    make(tmp_path / "test")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "test" / ".ipynb_checkpoints").mkdir()
    assert load(tmp_path).classes == ("cat", "dog")


# damaged and odd files


def test_a_truncated_file_is_named_and_the_rest_read(tmp_path):
    path = make(tmp_path) / "dog" / "002.png"
    path.write_bytes(path.read_bytes()[:80])
    data = load(tmp_path)
    assert len(everything(data)[1]) == 11
    [problem] = data.problems
    assert "skipped" in problem
    assert str(path) in problem


@pytest.mark.parametrize("kept", [0, 0.02, 0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "webp", "tif", "ppm"])
def test_no_truncation_stops_the_run(tmp_path, kind, kept):
    make(tmp_path)
    whole = io.BytesIO()
    Image.fromarray(pixels(77)).save(whole, Image.registered_extensions()[f".{kind}"])
    (tmp_path / "dog" / f"short.{kind}").write_bytes(whole.getvalue()[: int(kept * whole.tell())])
    assert [f"short.{kind}" in p for p in load(tmp_path).problems] == [True]


def test_an_image_of_another_size_is_named_and_resized(tmp_path):
    make(tmp_path)
    Image.fromarray(pixels(99, size=20)).save(tmp_path / "cat" / "large.png")
    data = load(tmp_path)
    assert len(of_label(data, 0)) == 7
    assert data.image_size == SIZE
    [problem] = data.problems
    assert "large.png is 20x20, not 8x8" in problem


def bomb():
    """The head of a PNG of 100 000 x 100 000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100))


def test_a_decompression_bomb_is_named_and_skipped(tmp_path):
    make(tmp_path)
    (tmp_path / "cat" / "bomb.png").write_bytes(bomb())
    data = load(tmp_path)
    assert len(everything(data)[1]) == 12
    [problem] = data.problems
    assert "bomb.png cannot be read (Image size (10000000000 pixels) exceeds limit" in problem


def test_grey_rgba_and_palette_images_mix_with_rgb(tmp_path):
    make(tmp_path)
    grey, colour = pixels(50, 1), pixels(51)
    half = np.dstack([colour, np.where(np.arange(SIZE) < 4, 0, 255).astype(np.uint8)[None].repeat(SIZE, 0)])
    palette = Image.fromarray(pixels(52, 1) % 4, "P")
    palette.putpalette([10, 20, 30, 200, 100, 0, 0, 0, 255, 7, 7, 7])
    Image.fromarray(grey).save(tmp_path / "cat" / "grey.png")
    Image.fromarray(half).save(tmp_path / "cat" / "rgba.png")
    palette.save(tmp_path / "cat" / "palette.png")
    over_white = np.where(half[..., 3:] == 0, 255, colour).astype(np.uint8)
    expected = [np.dstack([grey] * 3), over_white, np.asarray(palette.convert("RGB"))]
    data = load(tmp_path)
    assert data.channels == 3
    assert data.problems == ()
    assert stored(expected) < of_label(data, 0)


def test_grey_images_keep_one_channel(tmp_path):
    arrays = [fill(tmp_path / name, 6, channels=1, seed=i) for i, name in enumerate(("a", "b"))]
    data = load(tmp_path)
    assert data.channels == 1
    assert as_set(everything(data)[0]) == stored(arrays[0] + arrays[1])


@pytest.mark.parametrize("place", [1, 50, 100, 199])  # the reader looks at some of them to find the channels
def test_a_lone_colour_image_is_kept_or_named(tmp_path, place):
    for name in ("a", "b"):
        fill(tmp_path / name, 100, channels=1)
    lone = tmp_path / "ab"[place // 100] / f"{place % 100:03d}.png"
    Image.fromarray(pixels(500)).save(lone)
    data = load(tmp_path)
    assert data.channels == 3 or any(str(lone) in p for p in data.problems)


@pytest.mark.parametrize(("suffix", "dtype"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("pgm", "<u2")])
def test_16_bit_grey_images_are_scaled_to_8_bits(tmp_path, suffix, dtype):
    values = np.random.default_rng(0).integers(0, 65536, (12, SIZE, SIZE))
    for i, array in enumerate(values):
        folder = tmp_path / ("a" if i < 6 else "b")
        folder.mkdir(exist_ok=True)
        Image.fromarray(array.astype(dtype)).save(folder / f"{i}.{suffix}")
    data = load(tmp_path)
    images = everything(data)[0]
    assert data.channels == 1
    assert as_set(images) == stored((values >> 8).astype(np.uint8))


def deep(root, arrays, suffix="tif", kind=None):
    """Grey images of more bits, half of them of each class."""
    for i, array in enumerate(arrays):
        folder = root / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / f"{i:02d}.{suffix}", kind)
    return root


def test_12_bits_in_16_are_reported_and_scaled_by_the_range_that_is_given(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (12, SIZE, SIZE))
    values[0, 0, 0] = 4095
    deep(tmp_path, values.astype("<u2"), "png")
    data = load(tmp_path)
    assert as_set(everything(data)[0]) == stored((values >> 8).astype(np.uint8))
    [problem] = data.problems
    assert "12 16-bit images is 4095 of 65535" in problem
    assert "--data.value_range [0,4095]" in problem
    data = load(tmp_path, value_range=[0, 4095])
    assert data.problems == ()
    assert as_set(everything(data)[0]) == stored((values >> 4).astype(np.uint8))


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("<f4", 0.0, 1.0), ("<f4", -3.0, 5.0), ("<i4", -2000, 1999), ("<i4", 0, 1 << 20), ("<i4", 0, 255)],
)
def test_real_signed_and_32_bit_images_need_one_range_for_all(tmp_path, dtype, low, high):
    values = np.random.default_rng(0).uniform(low, high, (12, SIZE, SIZE)).astype(dtype)
    values[0, 0, :2] = low, high
    deep(tmp_path, values)
    with pytest.raises(DataError, match=re.escape(f"--data.value_range [{low:g},{high:g}]")):
        load(tmp_path)
    data = load(tmp_path, value_range=[low, high])
    whole = dtype == "<i4"
    if whole:
        expected = (values.astype(np.int64) - low) * 256 // (high - low + 1)
    else:
        expected = np.round((values.astype(np.float64) - low) * 255 / (high - low))
    assert data.channels == 1
    assert data.problems == ()
    assert as_set(everything(data)[0]) == stored(expected.astype(np.uint8))


def test_values_outside_the_range_and_no_numbers_are_named(tmp_path):
    values = np.random.default_rng(0).uniform(0, 1, (12, SIZE, SIZE)).astype("<f4")
    values[3, 2, 2], values[4, 0, 0] = 1.5, np.nan
    deep(tmp_path, values)
    data = load(tmp_path, value_range=[0, 1])
    clipped, skipped = data.problems if "clipped" in data.problems[0] else data.problems[::-1]
    assert "03.tif has values from" in clipped
    assert "04.tif cannot be read (it has values that are no numbers)" in skipped


def test_a_range_leaves_images_of_8_bits_alone_and_says_where_it_changes_nothing(tmp_path):
    make(tmp_path)
    data = load(tmp_path, value_range=[0, 4095])
    assert data.fingerprint() == load(tmp_path).fingerprint()
    assert data.problems == ("value range: no image has more than 8 bits, so --data.value_range changes nothing",)
    with pytest.raises(ConfigError, match=r"value_range is \(5.0, 5.0\); expected black and white|value_range is"):
        load(tmp_path, value_range=[5, 5])


# sizes


def test_images_of_many_sizes_ask_for_the_size_option(tmp_path):
    for name in ("a", "b"):
        for i in range(6):
            fill(tmp_path / name, 1, size=8 + i)
            (tmp_path / name / "000.png").rename(tmp_path / name / f"size{i}.png")
    with pytest.raises(DataError, match=r"--data\.image_size"):
        load(tmp_path)
    assert load(tmp_path, image_size=10).image_size == 10


def test_a_rectangle_is_cropped_at_its_centre(tmp_path):
    make(tmp_path)
    wide = np.concatenate([pixels(0), pixels(60), pixels(1)], axis=1)[:, 4:-4]
    Image.fromarray(wide).save(tmp_path / "cat" / "wide.png")
    assert stored([pixels(60)]) < of_label(load(tmp_path), 0)


# what cannot be used


def test_an_empty_class_is_named(tmp_path):
    (make(tmp_path) / "owl").mkdir()
    with pytest.raises(DataError, match=r"Empty class .* owl"):
        load(tmp_path)


def test_a_class_without_a_readable_image_is_named(tmp_path):
    make(tmp_path, ("cat", "dog", "owl"))
    for path in (tmp_path / "owl").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Empty class .* owl"):
        load(tmp_path)


def test_a_folder_without_a_readable_image_is_refused(tmp_path):
    for path in make(tmp_path).rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"None of the images.*000\.png"):
        load(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*no such folder"):
        load(tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "images.zip"
    path.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"images\.zip.*a file"):
        load(path)


@pytest.mark.parametrize("classes", [(), ("cat",)])
def test_fewer_than_two_classes_are_refused(tmp_path, classes):
    with pytest.raises(DataError, match=f"{len(classes)} class folder"):
        load(make(tmp_path, classes))


def test_a_test_folder_with_an_unknown_class_is_refused(tmp_path):
    make(tmp_path / "train")
    make(tmp_path / "test", ("cat", "owl"))
    with pytest.raises(DataError, match="owl"):
        load(tmp_path)


def test_a_test_folder_without_images_is_refused(tmp_path):
    make(tmp_path / "train")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "test"))):
        load(tmp_path)


def test_a_class_too_small_to_split_is_named(tmp_path):
    fill(make(tmp_path) / "owl", 2)
    with pytest.raises(DataError, match="'owl'"):
        load(tmp_path)


# fewer images


def test_max_per_class_keeps_that_many_training_images_of_each_class(tmp_path):
    arrays = [fill(tmp_path / "train" / n, c, seed=i) for i, (n, c) in enumerate((("a", 9), ("b", 4), ("c", 12)))]
    make(tmp_path / "test", ("a", "b", "c"), count=7)
    data = load(tmp_path, max_per_class=5)
    counts = np.add(data.train.counts(3), data.validation.counts(3))
    assert counts.tolist() == [5, 4, 5]
    assert data.test.counts(3) == [7, 7, 7]
    assert as_set(data.train.images) < stored(arrays[0] + arrays[1] + arrays[2])


# fingerprints


def test_the_fingerprint_stays_when_the_folder_moves(tmp_path):
    shutil.copytree(make(tmp_path / "here"), tmp_path / "there")
    assert load(tmp_path / "here").fingerprint() == load(tmp_path / "there").fingerprint()


def test_the_fingerprint_changes_with_one_pixel(tmp_path):
    before = load(make(tmp_path)).fingerprint()
    array = pixels(0)
    array[3, 4, 1] ^= 1
    Image.fromarray(array).save(tmp_path / "cat" / "000.png")
    assert load(tmp_path).fingerprint() != before


def test_the_fingerprint_changes_with_a_class_name(tmp_path):
    before = load(make(tmp_path)).fingerprint()
    (tmp_path / "dog").rename(tmp_path / "dogs")
    assert load(tmp_path).fingerprint() != before


# splits


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(2, 12), min_size=1, max_size=5),
    st.floats(0.01, 0.89),
    st.integers(0, 99),
    st.randoms(use_true_random=False),
)
def test_stratified_splits_are_disjoint_complete_and_have_every_class(counts, fraction, seed, random):
    labels = [c for c, n in enumerate(counts) for _ in range(n)]
    random.shuffle(labels)
    split = Split(torch.arange(len(labels)).view(-1, 1, 1, 1), torch.tensor(labels))
    rest, held = stratified_split(split, fraction, tuple(map(str, range(len(counts)))), seed, "test")
    numbers = torch.cat([rest.images, held.images]).flatten()
    assert torch.equal(numbers.sort().values, torch.arange(len(labels)))
    assert torch.equal(split.labels[numbers], torch.cat([rest.labels, held.labels]))
    assert held.counts(len(counts)) == [min(max(1, round(fraction * n)), n - 1) for n in counts]


def test_splits_of_another_purpose_are_drawn_apart():
    split = Split(torch.arange(40).view(-1, 1, 1, 1), torch.zeros(40, dtype=torch.int64))
    held = [stratified_split(split, 0.5, ("a",), 0, purpose)[1].images for purpose in ("test", "validation")]
    assert not torch.equal(*held)


# known collections


def test_digits(digits):
    assert digits.classes == tuple("0123456789")
    assert digits.train.images.shape[1:] == (1, 8, 8)
    images, labels = everything(digits)
    assert len(labels) == 1797
    assert (images.min(), images.max()) == (0, 255)
    assert digits.problems == ()


def test_digits_keep_their_labels(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = everything(digits)
    stored_pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    known = {i.tobytes(): y for i, y in zip(stored_pixels, bunch.target, strict=True)}
    assert [known[i.numpy().tobytes()] for i in images] == labels.tolist()


def test_cifar10(cifar10):
    assert cifar10.classes[:2] == ("airplane", "automobile")
    assert cifar10.train.images.shape == (360, 3, 32, 32)
    assert cifar10.train.counts(10) == [36] * 10
    assert cifar10.validation.counts(10) == [4] * 10
    assert cifar10.test.counts(10) == [1000] * 10
    assert cifar10.problems == ()


# licence


def test_the_licence_is_the_sources_unless_it_is_given(tmp_path):
    assert load_data().describe()["licence"] == "cc-by-4.0"
    assert load_data(licence="mit").describe()["licence"] == "mit"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.new("L", (8, 8), i).save(tmp_path / name / f"{i}.png")
    assert "licence" not in load_data(name=str(tmp_path)).describe()
