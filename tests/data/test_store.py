"""Stores: decoded images that later commands map into memory."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

import gendistill.data.reader as reader_module
from gendistill.cli import main
from gendistill.config import DataConfig
from gendistill.data.dataset import RealData
from gendistill.data.mapped import MappedImages, image_hashes, load_batches, map_file
from gendistill.data.sources import load_data
from gendistill.data.store import INDEX, JOURNAL, PIXELS, RECORD, open_store, write_store
from gendistill.data.store_cache import identity_of_files, store_folder
from gendistill.errors import ArtifactError, ConfigError, DataError, GendistillError, StorageError
from gendistill.hashing import hash_bytes
from gendistill.io import partial_of
from gendistill.progress import show_progress
from tests.data.folders import fill, make, pixels
from tests.processes import run_python


def store_of(cache: Path) -> Path:
    (found,) = (path for path in cache.iterdir() if path.is_dir())
    return found


def same(a: RealData, b: RealData) -> bool:
    splits = [(getattr(a, k), getattr(b, k)) for k in ("train", "validation", "test")]
    return a.fingerprint() == b.fingerprint() and all(
        torch.equal(x.pixels, y.pixels) and torch.equal(x.labels, y.labels) for x, y in splits
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "images", ("cat", "dog", "bird"), count=12)


def test_a_store_gives_what_memory_gives(folder: Path, tmp_path: Path) -> None:
    (folder / "cat" / "100.png").write_bytes(b"no image")
    plain = load_data(name=str(folder), cache=None)
    first, second = (load_data(name=str(folder), cache=tmp_path / "cache") for _ in range(2))
    assert isinstance(plain.train.images, torch.Tensor)
    assert isinstance(first.train.images, MappedImages)
    assert isinstance(second.train.images, MappedImages)
    assert same(plain, first)
    assert same(plain, second)
    assert plain.problems == first.problems == second.problems
    assert "cannot be read" in plain.problems[0]
    assert plain.describe() == second.describe()
    assert plain.reading == second.reading


def test_the_second_load_decodes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_data(name=str(folder), cache=tmp_path / "cache")
    monkeypatch.setattr(Image, "open", None)
    data = load_data(name=str(folder), cache=tmp_path / "cache", test_fraction=0.4, split_seed=3)
    assert data.test.counts(3) == [5, 5, 5]


@pytest.mark.parametrize(
    "options", [{}, {"max_per_class": 5}, {"test_fraction": 0.5, "split_seed": 2}, {"image_size": 6}]
)
def test_options_give_the_same_images_from_a_store(folder: Path, tmp_path: Path, options: dict[str, object]) -> None:
    plain = load_data(name=str(folder), cache=None, **options)
    for _ in range(2):
        stored = load_data(name=str(folder), cache=tmp_path / "cache", **options)
        assert same(plain, stored)
        assert stored.reading == plain.reading


def test_images_that_change_are_read_again_and_the_old_store_goes(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = load_data(name=str(folder), cache=cache)
    old = store_of(cache)
    Image.fromarray(pixels(999)).save(folder / "cat" / "000.png")
    after = load_data(name=str(folder), cache=cache)
    assert before.fingerprint() != after.fingerprint()
    assert same(after, load_data(name=str(folder), cache=None))
    assert store_of(cache) != old


@pytest.mark.parametrize(
    "damage",
    ["cut pixels", "changed pixels", "no pixels", "no index", "other index", "pipe index", "cut record", "pipe record",
     "other key"],
)  # fmt: skip
def test_a_damaged_store_is_made_again(
    folder: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, good = tmp_path / "cache", load_data(name=str(folder), cache=None)
    load_data(name=str(folder), cache=cache)
    store = store_of(cache)
    if damage == "cut pixels":
        os.truncate(store / PIXELS, 100)
    elif damage == "changed pixels":
        (store / PIXELS).write_bytes(bytes((store / PIXELS).stat().st_size))
    elif damage.startswith(("no ", "pipe ")):
        path = store / {"pixels": PIXELS, "index": INDEX, "record": RECORD}[damage.split()[1]]
        path.unlink()
        if damage.startswith("pipe"):
            os.mkfifo(path)
    elif damage == "other index":
        (store / INDEX).write_bytes(b"x")
    elif damage == "cut record":
        (store / RECORD).write_text('{"format": 1')
    else:
        record = json.loads((store / RECORD).read_text())
        (store / RECORD).write_text(json.dumps(record | {"key": "other"}))
    with pytest.raises(ArtifactError):
        open_store(store, store.name)
    assert main(["cache", "list", "--cache", str(cache)]) == 0
    assert "1 store(s)" in capsys.readouterr().out
    assert same(good, load_data(name=str(folder), cache=cache))
    open_store(store, store.name)


def test_files_of_others_in_place_of_a_store_are_kept(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load_data(name=str(folder), cache=cache)
    store = store_of(cache)
    (store / PIXELS).rename(store / "photo.png")
    with pytest.raises(StorageError, match=r"files that are no store's: photo\.png\. Remove the folder"):
        load_data(name=str(folder), cache=cache)
    assert main(["cache", "clear", "--cache", str(cache)]) == 0
    assert (store / "photo.png").is_file()


def test_a_store_that_another_process_builds_is_not_cleared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    load_data(name=str(folder), cache=cache)
    store = store_of(cache)
    partial = store.rename(partial_of(store))
    with FileLock(cache / f".{store.name}.lock"):
        assert main(["cache", "clear", "--cache", str(cache)]) == 0
        assert f"Another process builds {partial.name}, which is not removed" in capsys.readouterr().err
        assert partial.is_dir()
    assert main(["cache", "clear", "--cache", str(cache)]) == 0
    assert [*cache.iterdir()] == []


def test_a_cache_among_the_images_is_refused(folder: Path) -> None:
    for cache in (folder, folder / "cat" / "cache"):
        with pytest.raises(ConfigError, match=r"data\.cache is .*, in the folder of the images"):
            load_data(name=str(folder), cache=cache)
    first = load_data(name=str(folder), cache=folder / ".cache")
    assert isinstance(first.train.images, MappedImages)
    assert same(first, load_data(name=str(folder), cache=folder / ".cache"))
    assert len([path for path in (folder / ".cache").iterdir() if path.is_dir()]) == 1


def test_a_lock_file_that_is_removed_while_another_process_opens_it_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does filelock from the oldest version on that is allowed."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert "filelock>=3.21" in project["dependencies"]
    path, opened = tmp_path / ".store.lock", fcntl.flock

    def flock(file: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", opened)
        path.unlink()  # by ``remove_store`` of another process
        opened(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with FileLock(path):
        assert path.exists()


def test_that_no_store_is_kept_in_a_named_folder_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress():
        load_data(name="digits", cache=tmp_path / "cache")
        assert "data.cache: no store is kept of digits, because nothing says when" in capsys.readouterr().err
        load_data(name="digits")
        assert "data.cache" not in capsys.readouterr().err


def test_what_a_killed_process_finished_is_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "BLOCK", 5)
    cache, opened = tmp_path / "cache", []
    good = load_data(name=str(folder), cache=None)
    decode = reader_module.Reader.decode

    def stopping(self, items, target, places, first):  # type: ignore[no-untyped-def]
        if first == 20:
            raise KeyboardInterrupt
        return decode(self, items, target, places, first)

    with monkeypatch.context() as patch:
        patch.setattr(reader_module.Reader, "decode", stopping)
        with pytest.raises(KeyboardInterrupt):
            load_data(name=str(folder), cache=cache)
    partial = partial_of(store_folder(config := DataConfig(name=str(folder), cache=cache), identity_of_files(config)))
    lines = (partial / JOURNAL).read_text().splitlines()
    assert len(lines) == 1 + 4
    (partial / JOURNAL).write_text("\n".join([*lines[:3], lines[3][:40]]))  # the last line torn

    def counting(self, items, target, places, first):  # type: ignore[no-untyped-def]
        opened.append(first)
        return decode(self, items, target, places, first)

    monkeypatch.setattr(reader_module.Reader, "decode", counting)
    assert same(good, load_data(name=str(folder), cache=cache))
    assert opened == [10, 15, 20, 25, 30, 35]


def test_pixels_that_differ_from_the_journal_are_decoded_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, good = tmp_path / "cache", load_data(name=str(folder), cache=None)
    load_data(name=str(folder), cache=cache)
    store = store_of(cache)
    partial = partial_of(store)
    record, index = json.loads((store / RECORD).read_text()), np.load(store / INDEX)
    store.rename(partial)
    (partial / RECORD).unlink()
    head = json.dumps({"key": record["key"], "shape": record["shape"]})
    hashes = index["hashes"][index["rows"]]
    line = {"first": 0, "readable": np.packbits(np.ones(len(hashes), bool)).tobytes().hex(), "problems": [], "deep": 0}
    (partial / JOURNAL).write_text(
        head + "\n" + json.dumps(line | {"hashes": hashes.tobytes().hex(), "highest": 0}) + "\n"
    )
    (partial / PIXELS).write_bytes(bytes((partial / PIXELS).stat().st_size))
    assert same(good, load_data(name=str(folder), cache=cache))


@pytest.mark.parametrize("damage", ["no UTF-8", "too many images", "a fraction"])
def test_a_damaged_line_of_the_journal_is_left_out(
    folder: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, good = tmp_path / "cache", load_data(name=str(folder), cache=None)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gendistill.data.store._write_index", killed)
        with pytest.raises(KeyboardInterrupt):
            load_data(name=str(folder), cache=cache)
    journal = store_of(cache) / JOURNAL
    head, line = journal.read_bytes().splitlines()
    block = json.loads(line)
    if damage == "no UTF-8":
        line = line.replace(b'"problems": [', b'"problems": ["\xff"')
    elif damage == "too many images":
        line = json.dumps(block | {"hashes": 40 * block["hashes"], "readable": 40 * block["readable"]}).encode()
    else:
        line = json.dumps(block | {"first": 0.0}).encode()
    journal.write_bytes(head + b"\n" + line + b"\n")
    assert same(good, load_data(name=str(folder), cache=cache))


def test_two_commands_at_once_build_it_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = reader_module.Reader.decode

    def counting(self, items, target, places, first):  # type: ignore[no-untyped-def]
        decoded.append(len(items))
        return decode(self, items, target, places, first)

    monkeypatch.setattr(reader_module.Reader, "decode", counting)
    found: list[RealData] = []
    work = [
        threading.Thread(target=lambda: found.append(load_data(name=str(folder), cache=tmp_path / "cache")))
        for _ in range(3)
    ]
    for one in work:
        one.start()
    for one in work:
        one.join()
    assert sum(decoded) == 36
    assert len({data.fingerprint() for data in found}) == 1


def test_many_images_are_decoded_by_several_processes_alike(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "dog" / "100.png").write_bytes(b"no image")
    alone = load_data(name=str(folder), cache=None)
    monkeypatch.setattr(reader_module, "FEW", 10)
    monkeypatch.setattr(reader_module, "BLOCK", 4)
    monkeypatch.setattr(reader_module, "usable_processors", lambda: 2)
    for cache in (None, tmp_path / "cache"):
        found = load_data(name=str(folder), cache=cache)
        assert same(alone, found)
        assert found.problems == alone.problems


def test_a_folder_that_cannot_be_written_ends_with_one_message(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GendistillError, match=r"cannot be stored in .*--data\.cache"):
        load_data(name=str(folder), cache=tmp_path / "file" / "cache")


def test_a_full_disk_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="the disk is full"):
        load_data(name=str(folder), cache=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_images_that_memory_does_not_hold_are_refused_without_a_store(folder: Path) -> None:
    with pytest.raises(DataError, match=r"--data\.cache null keeps no store"):
        load_data(name=str(folder), cache=None, in_memory_gib=1e-6)


def test_a_store_is_a_source_itself(folder: Path, tmp_path: Path) -> None:
    good = load_data(name=str(folder), cache=tmp_path / "cache")
    moved = tmp_path / "moved"
    shutil.move(store_of(tmp_path / "cache"), moved)
    assert same(good, load_data(name=str(moved)))


def test_few_images_are_kept_in_no_store_by_themselves(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENDISTILL_CACHE", str(tmp_path / "own"))
    load_data(name=str(folder))
    assert not (tmp_path / "own").exists()
    monkeypatch.setattr("gendistill.data.store_cache.FEW", 10)
    load_data(name=str(folder))
    assert (store_of(tmp_path / "own" / "data") / RECORD).is_file()


def test_mapped_images_are_indexed_as_a_tensor_is() -> None:
    base = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8)
    rows = torch.randperm(20)[:12]
    mapped, plain = MappedImages(base, rows, image_hashes(base)), base[rows]
    assert mapped.shape == plain.shape
    assert len(mapped) == len(plain)
    for index in (
        3,
        -1,
        slice(2, 9, 3),
        [1, 5],
        torch.tensor([4, 0]),
        np.array([7, 7]),
        slice(None),
        plain[:, 0, 0, 0] > 99,
    ):
        assert torch.equal(mapped[index], plain[index])
    assert all(torch.equal(a, b) for a, b in zip(mapped.split(5), plain.split(5), strict=True))
    assert torch.equal(mapped.take(torch.tensor([3, 1]))[:], plain[[3, 1]])
    assert np.array_equal(image_hashes(mapped), image_hashes(plain))
    batches = [torch.tensor([1, 2]), torch.tensor([5])]
    for images in (mapped, plain):
        found = [*load_batches(images, batches, torch.device("cpu"))]
        assert all(torch.equal(a, plain[b]) for a, b in zip(found, batches, strict=True))


def test_fingerprints_of_earlier_versions_are_still_known(folder: Path, tmp_path: Path) -> None:
    data = load_data(name=str(folder), cache=tmp_path / "cache")
    plain = load_data(name=str(folder), cache=None)
    assert data.old_fingerprints == plain.old_fingerprints
    assert data.is_of(plain.old_fingerprints["fingerprint"])
    assert data.has_test_of(plain.old_fingerprints["test_fingerprint"])
    assert not data.is_of("0" * 32)
    assert not data.is_of(None)


def test_jpeg_files_much_larger_than_asked_for_are_decoded_smaller(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(4):
            smooth = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(
                (256, 256), Image.BICUBIC
            )
            smooth.save(tmp_path / label / f"{i}.jpg", quality=95)
    fast, exact = (load_data(name=str(tmp_path), image_size=32, decoding=kind) for kind in ("fast", "exact"))
    difference = (fast.train.pixels.int() - exact.train.pixels.int()).abs().float()
    assert 0 < difference.mean() < 1
    assert fast.options["name"]
    assert "decoding" not in fast.options
    assert exact.options["decoding"] == "exact"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_files_of_the_right_size_are_read_alike_by_both_decoders(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(6):
            noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
            kind = mode if i % 2 else "RGB"
            exif = Image.Exif()
            exif[274] = 6 if i == 2 else 1  # turned by a quarter
            noise.convert(kind).save(tmp_path / label / f"{i}.jpg", quality=80, **({"exif": exif} if i > 1 else {}))
    path = tmp_path / "a" / "5.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    fast, exact = (load_data(name=str(tmp_path), decoding=kind) for kind in ("fast", "exact"))
    assert same(fast, exact)
    assert fast.problems == exact.problems
    assert len(fast.problems) == 1
    assert "5.jpg cannot be read" in fast.problems[0]


def test_the_command_lists_and_clears(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    load_data(name=str(folder), cache=cache)
    load_data(name=str(folder), cache=cache, image_size=6)
    capsys.readouterr()
    assert main(["cache", "list", "--cache", str(cache)]) == 0
    listed = capsys.readouterr().out
    assert "36 images of 8 px, 3 classes" in listed
    assert "2 store(s)" in listed
    assert main(["cache", "clear", "nothing", "--cache", str(cache)]) == 2
    assert "no store 'nothing'" in capsys.readouterr().err
    name = listed.split()[0]
    assert main(["cache", "clear", name, "--cache", str(cache)]) == 0
    assert main(["cache", "clear", "--cache", str(cache), "--json"]) == 0
    assert main(["cache", "list", "--cache", str(cache)]) == 0
    assert "0 store(s)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_process_killed_while_it_builds_leaves_what_the_next_one_finishes(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for label in ("a", "b"):
        fill(images / label, 300, seed=ord(label))
    script = (
        "import os, signal, gendistill.data.reader as r\n"
        "r.BLOCK = 50\nold = r.Reader.decode\n"
        "def decode(self, items, target, places, first):\n"
        "    if first == 300: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return old(self, items, target, places, first)\n"
        "r.Reader.decode = decode\n"
        "from gendistill.data.sources import load_data\n"
        f"load_data(name={str(images)!r}, cache={str(tmp_path / 'cache')!r})\n"
    )
    assert run_python(script).returncode == -9
    found = load_data(name=str(images), cache=tmp_path / "cache")
    assert same(found, load_data(name=str(images), cache=None))


def batches_of(count: int, label: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of two images of one class, each of another colour."""
    images = [torch.from_numpy(pixels(10 * label + i)).permute(2, 0, 1) for i in range(count)]
    return [(torch.stack(images[i : i + 2]), torch.full((len(images[i : i + 2]),), label)) for i in range(0, count, 2)]


def test_batches_of_decoded_images_become_a_store(tmp_path: Path) -> None:
    train = [*batches_of(5, 1), *batches_of(4, 0)]
    made = write_store(tmp_path / "store", ("cat", "dog"), {"train": iter(train), "test": batches_of(3, 1)})
    data = load_data(name=str(tmp_path / "store"), validation_fraction=0.3)
    images, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
    expected = RealData.from_arrays(images, labels, ("cat", "dog"), test=batches_of(3, 1)[0], validation_fraction=0.3)
    assert torch.equal(data.train.pixels, expected.train.pixels)
    assert torch.equal(data.validation.labels, expected.validation.labels)
    assert (len(data.test), data.classes, made.record["shape"]) == (3, ("cat", "dog"), [12, 3, 8, 8])
    assert not partial_of(tmp_path / "store").exists()


IMAGES, ONES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.ones(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([(IMAGES.float(), ONES)], "float32"),
        ([(IMAGES[:, :2], ONES)], "C of 1 or 3"),
        ([(IMAGES[..., :4], ONES)], "H,H"),
        ([(IMAGES, ONES), (IMAGES[:, :1], ONES)], "shape of the first batch"),
        ([(IMAGES, 2 * ONES)], "one each, 0 to 1"),
        ([(IMAGES, ONES[:1])], "for 2 images"),
        ([], "no training image"),
    ],
)
def test_batches_that_no_store_holds_are_refused(tmp_path: Path, batches: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_store(tmp_path / "store", ("cat", "dog"), {"train": batches})  # type: ignore[dict-item]
    assert [*tmp_path.iterdir()] == []


def test_a_store_does_not_replace_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="there already"):
        write_store(tmp_path, ("cat", "dog"), {"train": [(IMAGES, 0 * ONES)]})
    with pytest.raises(StorageError, match="cannot be written"):
        write_store(tmp_path / "file" / "store", ("cat", "dog"), {"train": [(IMAGES, 0 * ONES)]})


@pytest.mark.parametrize("member", ["labels", "rows"])
@pytest.mark.parametrize("change", ["beyond", "negative", "float", "text"])
def test_an_index_of_no_images_is_refused(folder: Path, tmp_path: Path, member: str, change: str) -> None:
    load_data(name=str(folder), cache=tmp_path / "cache")
    store = store_of(tmp_path / "cache")
    with np.load(store / INDEX) as found:
        arrays = {name: found[name] for name in found.files}
    wrong = {"beyond": arrays[member] + 5, "negative": arrays[member] - 1, "float": arrays[member] / 2}
    arrays[member] = wrong.get(change, arrays[member].astype(str))
    np.savez(store / INDEX, **arrays)
    record = json.loads((store / RECORD).read_text())
    (store / RECORD).write_text(json.dumps({**record, "index_hash": hash_bytes((store / INDEX).read_bytes())}))
    with pytest.raises(ArtifactError, match="is damaged"):
        open_store(store)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"shape": [36]}, "shape is .36.; expected .N,C,H,H."),
        ({"shape": [36, 4, 6, 8]}, "shape is .36, 4, 6, 8."),
        ({"shape": [36, 3, 4, 16]}, "shape is .36, 3, 4, 16."),
        ({"splits": {"test": 36}}, "splits are {'test': 36}; expected images of train"),
        ({"splits": {"train": 37, "test": -1}}, "splits are"),
        ({"splits": {"train": 30, "other": 6}}, "splits are"),
    ],
)
def test_a_record_of_no_images_is_refused(
    folder: Path, tmp_path: Path, damage: dict[str, object], message: str
) -> None:
    load_data(name=str(folder), cache=tmp_path / "cache")
    store = store_of(tmp_path / "cache")
    record = json.loads((store / RECORD).read_text())
    (store / RECORD).write_text(json.dumps({**record, **damage}))
    with pytest.raises(ArtifactError, match=message):
        load_data(name=str(store))
    assert main(["cache", "list", "--cache", str(tmp_path / "cache")]) == 0


def test_stores_with_links_in_a_circle_are_listed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_data(name=str(folder), cache=tmp_path / "cache")
    store = store_of(tmp_path / "cache")
    (store / PIXELS).unlink()
    (store / PIXELS).symlink_to(PIXELS)
    assert main(["cache", "list", "--cache", str(tmp_path / "cache")]) == 0
    assert "damaged" in capsys.readouterr().out


def test_links_in_a_circle_are_left_out(folder: Path) -> None:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    assert load_data(name=str(folder), cache=None).classes == ("bird", "cat", "dog")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts what is mapped")
def test_a_file_larger_than_the_memory_is_mapped(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        size = file.truncate(1 << 43)
    found = map_file(tmp_path / "sparse", size)
    assert (found.shape, found.dtype, int(found[-1])) == ((size,), torch.uint8, 0)
    found[0] = 1
    with (tmp_path / "sparse").open("rb") as file:
        assert file.read(1) == b"\0"


def test_decoding_in_processes_draws_no_random_numbers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "FEW", 10)
    monkeypatch.setattr(reader_module, "BLOCK", 4)
    monkeypatch.setattr(reader_module, "usable_processors", lambda: 2)
    before = torch.get_rng_state()
    load_data(name=str(folder), cache=tmp_path / "cache")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "options", [{"image_size": 6}, {"max_per_class": 4}, {"class_names": "names.txt"}, {"test": "none"}]
)
def test_a_store_as_a_source_refuses_what_it_cannot_do(
    folder: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    load_data(name=str(folder), cache=tmp_path / "cache")
    store = str(store_of(tmp_path / "cache"))
    assert load_data(name=store, image_size=8, test_fraction=0.5, split_seed=1).image_size == 8
    with pytest.raises(ConfigError, match=f"data.{next(iter(options))} is .* is a store, whose images of 8 px"):
        load_data(name=store, **options)


def test_the_recorded_file_of_class_names_is_found_from_any_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "names.txt").write_text("bird\ncat\ndog\n")
    monkeypatch.chdir(tmp_path)
    data = load_data(name=str(folder), class_names="names.txt")
    monkeypatch.chdir("/")
    assert same(data, load_data(**data.options))


@pytest.mark.parametrize(
    ("classes", "split", "message"),
    [(("cat", "cat"), "train", "more than once"), (("cat", "dog"), "val", "splits has")],
)
def test_names_that_nothing_reads_are_refused(tmp_path: Path, classes: list[str], split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_store(tmp_path / "store", classes, {"train": [], split: [(IMAGES, ONES)]})
