"""Parquet files, datasets that were saved, and tar files: columns, names of labels, and which file is which split."""

import json

import numpy as np
import pytest
from PIL import Image

from gendistill.data.dataset import RealData
from gendistill.errors import DataError
from gendistill.surrogate.export import export
from gendistill.surrogate.set import SurrogateSet
from tests.data.folders import as_set, everything, load, make, of_label, pixels, stored


def write_parquet(folder, split, count=6, seed=0, images=None, labels=None, names=("ship", "car")):
    import datasets

    arrays = [pixels(1000 * seed + i) for i in range(count)]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    table = {"img": images or [Image.fromarray(a) for a in arrays], "label": labels or [i % 2 for i in range(count)]}
    datasets.Dataset.from_dict(table, features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return arrays


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty folder, and the cache of ``datasets`` beside it."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "shelf"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_parquet_files_with_a_held_out_split(shelf, held_out):
    train, test = write_parquet(shelf, "train", 8), write_parquet(shelf, held_out, 4, seed=1)
    data = load(shelf)
    assert data.classes == ("ship", "car")
    assert as_set(data.test.images) == stored(test)
    assert of_label(data, 0) == stored(train[::2] + test[::2])
    assert data.problems == ()


def test_a_parquet_test_split_is_preferred_and_validation_left_alone(shelf):
    write_parquet(shelf, "train", 8)
    write_parquet(shelf, "validation", 4, seed=1)
    test = write_parquet(shelf, "test", 4, seed=2)
    data = load(shelf)
    assert as_set(data.test.images) == stored(test)
    assert len(everything(data)[1]) == 12


def test_a_parquet_test_split_with_hidden_labels_gives_way_to_validation(shelf):
    write_parquet(shelf, "train", 8)
    validation = write_parquet(shelf, "validation", 4, seed=1)
    write_parquet(shelf, "test", 4, seed=2, labels=[-1] * 4)  # as ImageNet-1k has it on the Hub
    assert as_set(load(shelf).test.images) == stored(validation)


def test_parquet_files_without_a_held_out_split_are_split(shelf):
    arrays = write_parquet(shelf, "train", 16)
    data = load(shelf)
    assert data.test.counts(2) == [2, 2]
    assert as_set(everything(data)[0]) == stored(arrays)


def test_a_missing_image_in_a_parquet_file_is_named(shelf):
    write_parquet(shelf, "train", 12, images=[None if i == 5 else Image.fromarray(pixels(i)) for i in range(12)])
    data = load(shelf)
    assert len(everything(data)[1]) == 11
    [problem] = data.problems
    assert "train[5]" in problem


def test_parquet_files_without_image_and_label_columns_are_refused_with_the_columns_found(shelf):
    import datasets

    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).to_parquet(shelf / "train.parquet")
    with pytest.raises(DataError, match=r"text: Value.*type Image"):
        load(shelf)


def test_a_damaged_parquet_file_is_a_data_error(shelf):
    (shelf / "train.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="parquet"):
        load(shelf)


# which file is which split


def write(shelf, *names, count=8):
    """Files of that name, with 8 images each; returns the pixels by name."""
    return {name: stored(write_named(shelf / f"{name}.parquet", count, seed)) for seed, name in enumerate(names)}


def write_named(path, count=8, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = write_parquet(path.parent, "made", count, seed, **options)
    (path.parent / "made-00000-of-00001.parquet").rename(path)
    return arrays


def test_every_file_is_read_where_none_is_named_as_a_split(shelf):
    images = write(shelf, "batch_1", "batch_2", "more")
    data = load(shelf)
    assert as_set(everything(data)[0]) == set.union(*images.values())
    assert "from batch_1.parquet, batch_2.parquet, more.parquet" in data.reading


def test_a_file_of_no_split_is_left_out_by_name_or_named(shelf):
    images = write(shelf, "train", "extra")
    data = load(shelf)
    assert as_set(everything(data)[0]) == images["train"]
    assert "left out: 1 part(s) of no split (extra.parquet)" in data.reading
    assert as_set(everything(load(shelf, train="."))[0]) == images["train"] | images["extra"]
    assert as_set(load(shelf, test="extra").test.images) == images["extra"]


@pytest.mark.parametrize("names", [("cifar_test", "cifar_batch_1", "cifar_batch_2"), ("dev", "x"), ("test", "valid")])
def test_held_out_files_beside_others_are_refused_until_the_training_split_is_named(shelf, names):
    images = write(shelf, *names)
    with pytest.raises(DataError, match=rf"no part that is named as a training split.*{names[0]}.*--data\.train"):
        load(shelf)
    data = load(shelf, train=f"{names[1][:-1]}*", test=names[0])
    assert as_set(data.test.images) == images[names[0]]
    assert len(everything(data)[1]) == 8 * len(names)


def test_a_lone_test_file_is_taken_whole_and_said(shelf):
    images = write(shelf, "test")
    data = load(shelf)
    assert as_set(everything(data)[0]) == images["test"]
    assert "from test.parquet, " in data.reading
    assert "test held out from these" in data.reading


def test_files_in_folders_take_the_folders_role_and_hidden_ones_and_others_are_not_read(shelf):
    train, test = write_named(shelf / "train" / "0000.parquet"), write_named(shelf / "test" / "0000.parquet", seed=1)
    (shelf / ".cache").mkdir()
    (shelf / ".cache" / "x.parquet").write_bytes(b"no parquet")
    (shelf / "notes.txt").write_text("none")
    (shelf / "train.csv").write_text("none")
    data = load(shelf)
    assert as_set(data.test.images) == stored(test)
    assert as_set(everything(data)[0]) == stored(train + test)
    assert "1 hidden or system name(s)" in data.reading
    assert "1 file(s) of type .csv (train.csv)" in data.reading


def test_a_stray_parquet_or_tar_file_leaves_class_folders_what_they_are(shelf):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    make(shelf)
    write_table(pa.table({"file": ["a"], "label": [1]}), shelf / "metadata.parquet")
    (shelf / "images.tar").write_bytes(b"packed")
    data = load(shelf)
    assert data.classes == ("cat", "dog")
    assert "1 file(s) of type .parquet (metadata.parquet)" in data.reading
    write_named(shelf / "data.parquet")
    with pytest.raises(DataError, match=r"data\.parquet.*cat, dog.*Give the folder of one of both"):
        load(shelf)


def test_a_parquet_file_without_images_beside_one_with_them_is_left_out_by_name(shelf):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    write_table(pa.table({"file": ["a"], "label": [1]}), shelf / "metadata.parquet")
    images = write(shelf, "data")
    data = load(shelf)
    assert as_set(everything(data)[0]) == images["data"]
    assert "1 parquet file(s) without images (metadata.parquet)" in data.reading


def hub(monkeypatch, **splits):
    """What the Hub's id ``somebody/cars`` loads as: splits of (seed, labels)."""
    import datasets

    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ship", "car"])})
    made = datasets.DatasetDict()
    for name, (seed, labels) in splits.items():
        images = [Image.fromarray(pixels(1000 * seed + i)) for i in range(len(labels))]
        made[name] = datasets.Dataset.from_dict({"image": images, "label": labels}, kinds)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, revision=None: made)
    return lambda **options: load("somebody/cars", **options)


def test_splits_of_a_hub_dataset(monkeypatch):
    read = hub(monkeypatch, train=(0, [0, 1] * 4), validation=(1, [0, 1]), test=(2, [-1, -1]), extra=(3, [0, 1]))
    data = read()
    assert data.classes == ("ship", "car")
    assert as_set(data.test.images) == stored([pixels(1000), pixels(1001)])
    assert "2 for test from validation" in data.reading
    assert "left out: 1 part(s) without labels (test); 1 part(s) of no split (extra)" in data.reading
    assert len(read(test="extra", validation="validation").validation) == 2
    with pytest.raises(DataError, match=r"test has 2 image\(s\) without label"):
        read(test="test")
    with pytest.raises(DataError, match=r"--data\.test is 'nowhere'.*train, validation, test, extra"):
        read(test="nowhere")
    assert "test held out from these" in read(test="none").reading


@pytest.mark.parametrize("names", [("validation", "test"), ("a", "b"), ("train_a", "train_b")])
def test_hub_splits_of_which_none_is_surely_for_training_are_refused_until_it_is_named(monkeypatch, names):
    read = hub(monkeypatch, **{name: (i, [0, 1] * 4) for i, name in enumerate(names)})
    with pytest.raises(DataError, match=r"--data\.train"):
        read()
    assert "training from " + names[1] in read(train=names[1]).reading


# columns


def table(path, columns, **types):
    import datasets

    datasets.Dataset.from_dict(columns, datasets.Features(types)).to_parquet(path)


def images_and(count=8, **columns):
    return {"image": [Image.fromarray(pixels(i)) for i in range(count)], **columns}


def test_a_cell_without_bytes_and_path_is_skipped(shelf):
    import pyarrow as pa
    from pyarrow.parquet import read_table, write_table

    write_parquet(shelf, "train", 8)
    path = shelf / "train-00000-of-00001.parquet"
    rows = read_table(path)
    cells = rows["img"].to_pylist()
    cells[2] = {"bytes": None, "path": None}
    write_table(rows.set_column(0, "img", pa.array(cells, rows.schema.field("img").type)), path)
    data = load(shelf)
    [problem] = data.problems
    assert "train[2] cannot be read (the cell is empty)" in problem
    assert len(everything(data)[1]) == 7


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_beyond_the_names_are_refused_when_reading(shelf, split):
    import pyarrow as pa
    from pyarrow.parquet import read_table, write_table

    write_parquet(shelf, "train", 8)
    write_parquet(shelf, "test", 4, seed=1)
    path = shelf / f"{split}-00000-of-00001.parquet"
    rows = read_table(path)
    write_table(rows.set_column(1, rows.schema.field("label"), pa.array([0, 1, 7, 9] * (len(rows) // 4))), path)
    with pytest.raises(DataError, match=rf"{split}.*label\(s\) beyond its 2 class names, such as 7"):
        load(shelf)


def test_two_columns_of_images_are_refused_until_one_is_named(shelf):
    import datasets

    masks = [Image.new("L", (8, 8), i) for i in range(8)]
    kinds = {"mask": datasets.Image(), "image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    table(shelf / "train.parquet", {"mask": masks, **images_and(label=[0, 1] * 4)}, **kinds)
    with pytest.raises(DataError, match=r"not clear which has the images.*--data\.image_column mask"):
        load(shelf)
    assert as_set(everything(load(shelf, image_column="image"))[0]) == stored([pixels(i) for i in range(8)])
    with pytest.raises(DataError, match=r"image_column is 'label', but .* mask: Image, image: Image"):
        load(shelf, image_column="label")


def test_two_columns_of_labels_are_refused_until_one_is_named(shelf):
    import datasets

    kinds = {"fine": datasets.ClassLabel(names=list("abcd")), "coarse": datasets.ClassLabel(names=["x", "y"])}
    columns = images_and(fine=[0, 1, 2, 3] * 2, coarse=[0, 0, 1, 1] * 2)
    table(shelf / "train.parquet", columns, image=datasets.Image(), **kinds)
    with pytest.raises(DataError, match=r"not clear which has the labels.*--data\.label_column fine"):
        load(shelf)
    assert load(shelf, label_column="coarse").classes == ("x", "y")


@pytest.mark.parametrize(
    ("kind", "labels", "classes"), [("int64", [10, 9] * 4, ("9", "10")), ("string", ["b", "a"] * 4, ("a", "b"))]
)
def test_labels_of_numbers_and_names_have_a_way_in(shelf, kind, labels, classes):
    import datasets

    kinds = {"image": datasets.Image(), "kind": datasets.Value(kind)}
    table(shelf / "train.parquet", images_and(kind=labels), **kinds)
    with pytest.raises(DataError, match=r"--data\.label_column kind"):
        load(shelf)
    data = load(shelf, label_column="kind")
    assert data.classes == classes
    assert of_label(data, 1) == stored([pixels(i) for i in range(0, 8, 2)])


def test_plain_parquet_files_without_types_of_datasets_are_read(shelf):
    import io

    import pyarrow as pa
    from pyarrow.parquet import write_table

    files = []
    for i in range(8):
        file = io.BytesIO()
        Image.fromarray(pixels(i)).save(file, "PNG")
        files.append(file.getvalue())
    write_table(pa.table({"jpg": files, "label": ["b", "a"] * 4}), shelf / "train.parquet", row_group_size=3)
    data = load(shelf)
    assert data.classes == ("a", "b")
    assert of_label(data, 1) == stored([pixels(i) for i in range(0, 8, 2)])


def test_labels_of_several_files_are_joined_by_name(shelf):
    write_named(shelf / "train-00000-of-00002.parquet", 8, names=("ship", "car"))
    write_named(shelf / "train-00001-of-00002.parquet", 8, seed=1, names=("car", "ship"))
    write_named(shelf / "test.parquet", 8, seed=2, names=("car", "ship", "owl"))
    data = load(shelf)
    assert data.classes == ("ship", "car")
    ships = [pixels(i) for i in range(0, 8, 2)] + [pixels(k + i) for k in (1000, 2000) for i in range(1, 8, 2)]
    assert of_label(data, 0) == stored(ships)


def test_a_class_of_the_test_split_alone_is_refused(shelf):
    write_named(shelf / "train.parquet")
    write_named(shelf / "test.parquet", seed=1, names=("ship", "owl"))
    with pytest.raises(DataError, match=r"test\.parquet has classes that the training split lacks: owl"):
        load(shelf)


def test_names_without_images_are_refused_in_short_or_left_out(shelf):
    names = [f"c{i:04d}" for i in range(1000)]
    write_parquet(shelf, "train", 20, names=names, labels=[7, 500] * 10)
    with pytest.raises(DataError, match=r"998 of 1000 classes.*--data\.classes present") as caught:
        load(shelf)
    assert len(str(caught.value)) < 500
    data = load(shelf, classes="present")
    assert data.classes == ("c0007", "c0500")
    assert "998 classes without training images (c0000, c0001, c0002 and 995 more)" in data.reading


# datasets that were saved, and tar files


@pytest.mark.parametrize("several", [False, True])
def test_folders_of_save_to_disk_are_read(shelf, several):
    import datasets

    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    one = datasets.Dataset.from_dict(images_and(label=[0, 1] * 4), kinds)
    held = datasets.Dataset.from_dict({"image": [Image.fromarray(pixels(50))], "label": [1]}, kinds)
    (datasets.DatasetDict(train=one, test=held) if several else one).save_to_disk(str(shelf / "saved"))
    data = load(shelf / "saved")
    assert data.classes == ("a", "b")
    assert of_label(data, 0) == stored([pixels(i) for i in range(0, 8, 2)])
    assert as_set(data.test.images) == stored([pixels(50)]) or not several


@pytest.mark.parametrize("format", ["webdataset", "parquet", "imagefolder"])
def test_our_own_exports_are_read(shelf, format):
    import torch

    images = torch.from_numpy(np.stack([pixels(i).transpose(2, 0, 1) for i in range(8)]))
    labels = torch.arange(8) // 4
    made = SurrogateSet(images, labels, ("ship", "car"))
    export(made, shelf / "export", format)
    data = load(shelf / "export")
    ship = data.classes.index("ship")
    assert set(data.classes) == {"ship", "car"}
    assert format == "imagefolder" or data.classes == ("ship", "car")
    assert of_label(data, ship) == stored([pixels(i) for i in range(4)])
    few = SurrogateSet(images[[0, 1, 4, 5]], labels[[0, 1, 4, 5]], ("ship", "car"))
    export([made, few], shelf / "two", format)
    with pytest.raises(DataError, match=r"several sets|holds only folders"):
        load(shelf / "two")


def tar_of(path, samples):
    """A tar file of {name: bytes}."""
    import io
    import tarfile

    with tarfile.open(path, "w") as tar:
        for name, data in samples.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def png(array):
    import io

    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_tar_files_of_others_are_read_by_split_and_damaged_ones_refused(shelf):
    for seed, split in enumerate(("train", "test")):
        samples = {}
        for i in range(8):
            samples |= {f"{i:04d}.png": png(pixels(1000 * seed + i)), f"{i:04d}.cls": [b"owl", b"ant"][i % 2]}
        tar_of(shelf / f"{split}-000000.tar", samples)
    data = load(shelf)
    assert data.classes == ("ant", "owl")
    assert as_set(data.test.images) == stored([pixels(1000 + i) for i in range(8)])
    tar_of(shelf / "train-000001.tar", {"0000.png": png(pixels(0))})
    with pytest.raises(DataError, match=r"train-000001\.tar is not a webdataset of labelled images, because of 0000"):
        load(shelf)
    (shelf / "train-000001.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"Cannot read the tar file .*train-000001"):
        load(shelf)


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (b"", r"train\.tar:0003\.cls is b''; expected a label"),
        (b" \n", r"0003\.cls is b' \\n'; expected a label"),
        (b"\xff", r"0003\.cls is b'\\xff'; expected a label"),
        (b"a" * 1001, "of at most 1000 bytes"),
    ],
    ids=["empty", "blank", "no UTF-8", "long"],
)
def test_a_label_in_a_tar_file_that_is_no_text_is_refused(shelf, label, says):
    labels = [b"owl", b"ant", b"owl", label, b"a" * 1000, b"ant"]
    samples = {f"{i:04d}.png": png(pixels(i)) for i in range(6)} | {f"{i:04d}.cls": one for i, one in enumerate(labels)}
    tar_of(shelf / "train.tar", samples)
    with pytest.raises(DataError, match=says):
        load(shelf)


@pytest.mark.parametrize("classes", [["owl", None], ["owl", ["ant"]], ["owl", "owl"], ["owl", " "], ["owl", True]])
def test_a_manifest_of_tar_files_whose_classes_are_no_names_is_refused(shelf, classes):
    samples = {f"{i:04d}.png": png(pixels(i)) for i in range(8)} | {f"{i:04d}.cls": b"%d" % (i % 2) for i in range(8)}
    tar_of(shelf / "train.tar", samples)
    (shelf / "manifest.json").write_text(json.dumps({"classes": classes}))
    with pytest.raises(DataError, match=r"manifest\.json has the classes .* expected names, each once"):
        load(shelf)
    (shelf / "manifest.json").write_text(json.dumps({"classes": ["owl", 7]}))
    assert load(shelf).classes == ("owl", "7")


def with_labels(path, labels):
    import datasets

    kind = datasets.Value("string" if isinstance(labels[0], str) else "int64")
    table(path, images_and(len(labels), label=labels), image=datasets.Image(), label=kind)


@pytest.mark.parametrize("blank", ["", " "])
def test_an_empty_label_is_refused_with_its_file_and_row(shelf, blank):
    with_labels(shelf / "train.parquet", ["a", "b", "a", blank] * 2)
    with pytest.raises(DataError, match=r"train\.parquet has 2 empty label\(s\) in the column 'label', first row 4"):
        load(shelf)
    write_named(shelf / "train.parquet", names=("ship", blank))
    with pytest.raises(DataError, match=r"train\.parquet has 4 empty label\(s\) .*, first row 2"):
        load(shelf)


def test_numbers_in_one_parquet_file_and_names_in_another_are_refused(shelf):
    with_labels(shelf / "a.parquet", [0, 1] * 4)
    with_labels(shelf / "b.parquet", ["cat", "dog"] * 4)
    with pytest.raises(DataError, match=r"a\.parquet has numbers as labels, and b\.parquet has names, such as 'cat'"):
        load(shelf)
    with_labels(shelf / "b.parquet", ["0", "1"] * 4)
    assert load(shelf).classes == ("0", "1")
    write_named(shelf / "b.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has numbers as labels, and b\.parquet has names, such as 'ship'"):
        load(shelf)


def test_one_class_alone_is_refused(shelf):
    with_labels(shelf / "a.parquet", ["cat"] * 8)
    with pytest.raises(DataError, match=r"has 1 class\(es\) \(cat\); expected at least two classes"):
        load(shelf)
    (shelf / "a.parquet").unlink()
    samples = {f"{i:04d}.png": png(pixels(i)) for i in range(8)} | {f"{i:04d}.cls": b"owl" for i in range(8)}
    tar_of(shelf / "a.tar", samples)
    with pytest.raises(DataError, match=r"has 1 class\(es\) \(owl\); expected at least two classes"):
        load(shelf)
    with pytest.raises(DataError, match="expected at least two classes"):
        RealData.from_arrays(np.zeros((8, 8, 8, 3), np.uint8), [0] * 8, classes=["cat"])
