"""A store: the decoded images of a collection in one file that is mapped into memory.

A store is a folder: ``images.u8`` holds the pixels of all images, sorted by split and class; ``index.npz`` their
labels, places and hashes; ``store.json`` what they are and where they came from. A store that is being built is
``NAME.partial``, where ``blocks.jsonl`` says which images are done: the next process continues after one was killed.

Legend: N images of all splits, C channels, H = W the side in pixels.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict

import numpy as np
import torch
from torch import Tensor

from gendistill.data.dataset import Split, require_classes
from gendistill.data.items import Source, some
from gendistill.data.mapped import HASH, MappedImages, image_hashes, map_file
from gendistill.data.reader import Block, Reader, show_blocks
from gendistill.errors import ArtifactError, DataError, StorageError
from gendistill.hashing import hash_bytes
from gendistill.io import partial_of, read_json, reserve, write_json
from gendistill.progress import note

FORMAT, RECORD, PIXELS, INDEX, JOURNAL = 1, "store.json", "images.u8", "index.npz", "blocks.jsonl"
OWN = {RECORD, PIXELS, INDEX, JOURNAL, f"{RECORD}.partial"}
CHECKED = 64  # images whose pixels are compared with their hashes when a store is opened
FIX = "Run `gendistill cache clear`, or remove it; the images are then read again."
SPLITS = ("train", "validation", "test")


class StoreRecord(TypedDict, total=False):
    """What ``store.json`` says.

    Attributes:
        format: Version of the format.
        key: Of the files and options that the images were read from, as ``store_cache.store_key`` makes it.
        name: The source, as ``DataConfig.name`` named it.
        classes: Names in index order.
        shape: (N,C,H,W) of the file.
        splits: Images of each split, in order, readable or not.
        index_hash: Of ``index.npz``.
        origins: As in ``Source``.
        left_out: As in ``Source``.
        licence: As in ``Source``.
        problems: What was skipped or altered while reading.
    """

    format: Required[int]
    key: Required[str]
    name: Required[str]
    classes: Required[list[str]]
    shape: Required[list[int]]
    splits: Required[dict[str, int]]
    index_hash: Required[str]
    origins: Required[dict[str, str]]
    left_out: Required[list[str]]
    licence: Required[str | None]
    problems: Required[list[str]]


@dataclass(frozen=True)
class Store:
    """An opened store.

    Attributes:
        folder: Where it is.
        record: What ``store.json`` says.
        splits: The readable images of each split, in the order of the source.
    """

    folder: Path
    record: StoreRecord
    splits: Mapping[str, Split]

    @property
    def problems(self) -> list[str]:
        return self.record["problems"]

    @property
    def source(self) -> Source:
        """What the images were read from, without items."""
        found = self.record
        return Source(
            tuple(found["classes"]),
            {split: [] for split in self.splits},
            found["licence"],
            found["origins"],
            tuple(found["left_out"]),
        )


def is_store(folder: Path) -> bool:
    return (folder / RECORD).is_file() and (folder / PIXELS).is_file()


def is_part_of_store(folder: Path) -> bool:
    """Whether a folder has files of a store and no others: one that was damaged, or is being built."""
    try:
        names = {*os.listdir(folder)}
    except OSError:
        return False
    return names <= OWN and bool(names - {RECORD})


def read_record(folder: Path) -> StoreRecord:
    """What ``store.json`` says.

    Raises:
        ArtifactError: it is missing or damaged, or describes no images that a store can hold.
    """
    record: StoreRecord = read_json(  # type: ignore[assignment]
        folder / RECORD, kind="a store of images", fix=FIX, format=FORMAT, schema=StoreRecord
    )
    shape, splits = record["shape"], record["splits"]
    if not (len(shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3] >= 1):
        raise ArtifactError(f"{folder} is damaged: its shape is {shape}; expected [N,C,H,H] with C of 1 or 3. {FIX}")
    if not splits.get("train") or not {*splits} <= {*SPLITS} or min(splits.values()) < 0:
        expected = "images of train and, where there are any, validation and test"
        raise ArtifactError(f"{folder} is damaged: its splits are {splits}; expected {expected}. {FIX}")
    return record


def open_store(folder: Path, key: str | None = None) -> Store:
    """Map the images of a store; takes about as long as reading its index.

    Args:
        folder: Of a store.
        key: That it must have; None takes any.

    Raises:
        ArtifactError: it is damaged, or of another key.
    """
    record = read_record(folder)
    if key is not None and record["key"] != key:
        raise ArtifactError(f"{folder} is the store of other images (key {record['key']}, expected {key}). {FIX}")
    if not (folder / PIXELS).is_file():
        raise ArtifactError(f"{folder} is damaged: it has no file {PIXELS}. {FIX}")
    index, shape = _index(folder, record["index_hash"]), record["shape"]
    count, size = sum(record["splits"].values()), (folder / PIXELS).stat().st_size
    rows, labels, hashes = (index.get(name, np.empty(0)) for name in ("rows", "labels", "hashes"))
    shapes = (labels.shape, rows.shape, hashes.shape, size)
    if shapes != ((count,), (count,), (count, HASH), int(np.prod(shape))) or shape[0] != count:
        raise ArtifactError(f"{folder} is damaged: its files do not have the {count} images of {shape[1:]}. {FIX}")
    kinds = [array.dtype.name for array in (rows, labels, hashes)]
    classes = record["classes"]
    right = kinds == ["int64", "int64", "uint8"] and len({*classes}) == len(classes)
    if not right or not np.array_equal(np.sort(rows), np.arange(count)) or not _within(labels, len(classes)):
        raise ArtifactError(f"{folder} is damaged: {INDEX} has no places and labels of its {count} images. {FIX}")
    base = map_file(folder / PIXELS, size).view(shape)
    looked_at = np.unique(np.linspace(0, count - 1, min(count, CHECKED)).astype(np.int64))
    looked_at = looked_at[hashes[looked_at].any(1)]  # the others could not be read
    if not np.array_equal(image_hashes(base[torch.from_numpy(looked_at)]), hashes[looked_at]):
        raise ArtifactError(f"{folder} is damaged: images in {PIXELS} differ from their hashes. {FIX}")
    splits, first = {}, 0
    for split, n in record["splits"].items():
        here = slice(first, first + n)
        kept = torch.from_numpy(hashes[rows[here]].any(1))
        images = MappedImages(base, torch.from_numpy(rows[here])[kept], hashes)
        splits[split], first = Split(images, torch.from_numpy(labels[here])[kept]), first + n
    return Store(folder, record, splits)


def _within(labels: np.ndarray, classes: int) -> bool:
    return bool(((labels >= 0) & (labels < classes)).all())


def _index(folder: Path, expected: str) -> dict[str, np.ndarray]:
    try:
        if not (folder / INDEX).is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        content = (folder / INDEX).read_bytes()
        if hash_bytes(content) != expected:
            raise ValueError("its hash differs")
        with np.load(folder / INDEX, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / INDEX} is damaged: {error}. {FIX}") from error


def build_store(folder: Path, source: Source, reader: Reader, *, key: str, name: str) -> Store:
    """Decode all images of a source into a new store, or continue where a killed process stopped.

    Args:
        folder: The store; processes that build the same one at once wait for the first.
        source: With the items of each split.
        reader: How they are decoded.
        key: Of the source and options.
        name: The source, for people.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    with _alone(folder):
        if is_store(folder):
            with suppress(ArtifactError):
                return open_store(folder, key)
        if folder.is_dir():  # damaged
            if others := sorted({*os.listdir(folder)} - OWN):
                raise StorageError(f"{folder} has files that are no store's: {some(others, 3)}. Remove the folder.")
            shutil.rmtree(folder)
        partial = partial_of(folder)
        try:
            record = _write(partial, source, reader, key, name)
            write_json(partial / RECORD, record)
            (partial / JOURNAL).unlink()
            partial.rename(folder)
        except OSError as error:
            raise _storage_error(partial, error) from error
    return open_store(folder, key)


def _write(partial: Path, source: Source, reader: Reader, key: str, name: str) -> StoreRecord:
    """Fill the pixels and the index."""
    items = [item for split in source.splits.values() for item in split]
    labels, sizes = np.array([item.label for item in items], np.int64), [len(s) for s in source.splits.values()]
    rows = _class_sorted(labels, sizes)
    shape = [len(items), *reader.shape]
    identity = {"key": key, "shape": shape}
    _begin(partial, identity)
    blocks = [*_finished_blocks(partial, identity, rows)]
    done = blocks[-1].end if blocks else 0
    with (partial / JOURNAL).open("a", encoding="utf-8") as journal, _PixelFile(partial / PIXELS) as pixels:
        for block in show_blocks(reader.decode_all(items, pixels, rows, done), len(items), done):
            journal.write(json.dumps(_as_line(block)) + "\n")
            journal.flush()
            blocks.append(block)
            pixels.start_writing()
    hashes = np.zeros((len(items), HASH), np.uint8)
    hashes[rows] = np.concatenate([block.hashes for block in blocks])
    return {
        "format": FORMAT,
        "key": key,
        "name": name,
        "classes": list(source.classes),
        "shape": shape,
        "splits": dict(zip(source.splits, sizes, strict=True)),
        "index_hash": _write_index(partial, labels=labels, rows=rows, hashes=hashes),
        "origins": source.origins,
        "left_out": list(source.left_out),
        "licence": source.licence,
        "problems": reader.problems(blocks),
    }


def _write_index(partial: Path, **arrays: np.ndarray) -> str:
    """The hash of the index."""
    with (partial / INDEX).open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    return hash_bytes((partial / INDEX).read_bytes())


def write_store(
    folder: str | Path,
    classes: Sequence[str],
    splits: Mapping[str, Iterable[tuple[Tensor, Tensor]]],
    *,
    licence: str | None = None,
) -> Store:
    """A store of images that are decoded already, for collections that no memory holds; ``load_data`` reads it by name.

    Args:
        folder: The new store.
        classes: Names in index order.
        splits: Batches of ``train`` and, where there are any, ``validation`` and ``test``, each read once: uint8 images
            (B,C,H,W) of one shape, and labels (B,), positions in ``classes``. The file has them in this order: one
            class after another is the order in which classes are read fastest.
        licence: Of the images, as the Hub spells it.

    Raises:
        DataError: fewer than two classes, batches of another type or shape, labels that are no classes, no training
            image, or a folder that is there already.
        StorageError: the disk is full, or the folder cannot be written.

    Example:
        >>> batches = ((images[i : i + 500], labels[i : i + 500]) for i in range(0, len(images), 500))
        >>> data = gd.load_data(name=str(write_store("store", ("cat", "dog"), {"train": batches}).folder))
    """
    folder = Path(folder)
    if folder.exists():
        raise DataError(f"{folder} is there already; expected the name of a new store.")
    require_classes(str(folder), classes)
    partial, labels, hashes, sizes, shape = partial_of(folder), list[np.ndarray](), list[np.ndarray](), {}, None
    _check_names(classes, splits)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with (partial / PIXELS).open("wb") as file:
            for split, batches in splits.items():
                sizes[split] = 0
                for images, of in batches:
                    shape = shape or tuple(images.shape[1:])
                    _check_batch(images, of, shape, len(classes))
                    file.write(images.contiguous().numpy())
                    labels.append(of.numpy().astype(np.int64))
                    hashes.append(image_hashes(images))
                    sizes[split] += len(images)
            file.flush()
            os.fsync(file.fileno())
        if shape is None or not sizes.get("train"):
            raise DataError(f"The store {folder} has no training image; expected batches of the split 'train'.")
        count = sum(sizes.values())
        arrays = {"labels": np.concatenate(labels), "rows": np.arange(count), "hashes": np.concatenate(hashes)}
        index = _write_index(partial, **arrays)
        record: StoreRecord = {
            "format": FORMAT, "key": index[:16], "name": folder.name, "classes": list(classes),
            "shape": [count, *shape], "splits": sizes, "index_hash": index, "origins": {}, "left_out": [],
            "licence": licence, "problems": [],
        }  # fmt: skip
        write_json(partial / RECORD, record)
        partial.rename(folder)
    except OSError as error:
        raise StorageError(f"The store {folder} cannot be written: {error.strerror or error}. Free room.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_store(folder)


def _check_names(classes: Sequence[str], splits: Iterable[str]) -> None:
    """Refuse classes of one name, and splits that nothing reads."""
    if twice := [name for name in dict.fromkeys(classes) if list(classes).count(name) > 1]:
        raise DataError(f"classes has {some(twice)} more than once; expected each name once.")
    if odd := [name for name in splits if name not in SPLITS]:
        raise DataError(f"splits has {some(odd)}; expected {', '.join(SPLITS)}.")


def _check_batch(images: Tensor, labels: Tensor, shape: tuple[int, ...], classes: int) -> None:
    """Refuse a batch that the store cannot hold."""
    found = tuple(images.shape)
    square = len(found) == 4 and found[1] in (1, 3) and found[2] == found[3]
    if images.dtype != torch.uint8 or not square or found[1:] != shape:
        raise DataError(
            f"A batch has {images.dtype} images {found}; expected torch.uint8 (B,C,H,H) with C of 1 or 3, all of the "
            "shape of the first batch."
        )
    if labels.shape != found[:1] or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes):
        raise DataError(
            f"A batch has labels {tuple(labels.shape)} for {len(images)} images; expected one each, 0 to {classes - 1}."
        )


def _class_sorted(labels: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Where each image goes in the file: splits one after another, each sorted by class."""
    splits = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.empty(len(labels), np.int64)
    rows[np.lexsort((labels, splits))] = np.arange(len(labels))
    return rows


class _PixelFile:
    """Writes images at their places in the file: pages that are mapped for writing take a third more processor time."""

    def __init__(self, path: Path) -> None:
        self.file, self.thread, self.written = os.open(path, os.O_WRONLY), ThreadPoolExecutor(1), Future[None]()
        self.written.set_result(None)

    def start_writing(self) -> None:
        """Send to the disk what was decoded so far, so that little is left at the end."""
        if self.written.done():
            self.written = self.thread.submit(os.fsync, self.file)

    def __setitem__(self, place: int, image: np.ndarray) -> None:
        content = np.ascontiguousarray(image).data
        if os.pwrite(self.file, content, int(place) * image.size) < image.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __enter__(self) -> _PixelFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.thread.shutdown()
        if kind is None:
            self.written.result()
            os.fsync(self.file)
        os.close(self.file)


def _begin(partial: Path, identity: Mapping[str, Any]) -> None:
    """Make the file of all pixels, unless it is there; what another source left is removed."""
    head = json.dumps(identity)
    journal = partial / JOURNAL
    known = journal.open(encoding="utf-8", errors="replace").readline() if journal.is_file() else ""
    if known.rstrip("\n") != head or not (partial / PIXELS).is_file():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        size = int(np.prod(identity["shape"]))
        try:
            with (partial / PIXELS).open("wb") as file:
                reserve(file.fileno(), size)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        journal.write_text(head + "\n", encoding="utf-8")


def _finished_blocks(partial: Path, identity: Mapping[str, Any], rows: np.ndarray) -> Iterator[Block]:
    """The blocks that a killed process finished, as far as their pixels are what it hashed."""
    pixels = np.memmap(partial / PIXELS, np.uint8, "r", shape=tuple(identity["shape"]))
    with (partial / JOURNAL).open(encoding="utf-8", errors="surrogateescape") as lines:
        next(lines)
        good, expected = [json.dumps(identity) + "\n"], 0
        for line in lines:
            try:
                line.encode()  # an error where bytes were no UTF-8
                block = _of_line(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                break
            if block.first != expected or block.end > len(rows):
                break
            images = torch.from_numpy(pixels[rows[block.first : block.end]][block.readable])
            if not np.array_equal(image_hashes(images), block.hashes[block.readable]):
                break
            expected = block.end
            good.append(line)
            yield block
    (partial / JOURNAL).write_text("".join(good), encoding="utf-8")


def _as_line(block: Block) -> dict[str, Any]:
    return {
        "first": block.first,
        "readable": np.packbits(block.readable).tobytes().hex(),
        "hashes": block.hashes.tobytes().hex(),
        "problems": block.problems,
        "deep": block.deep,
        "highest": block.highest,
    }


def _of_line(line: dict[str, Any]) -> Block:
    hashes = np.frombuffer(bytes.fromhex(line["hashes"]), np.uint8).reshape(-1, HASH)
    readable = np.unpackbits(np.frombuffer(bytes.fromhex(line["readable"]), np.uint8), count=len(hashes)).astype(bool)
    numbers = isinstance(line["first"], int) and all(isinstance(line[k], (int, float)) for k in ("deep", "highest"))
    if not numbers or not isinstance(line["problems"], list) or not all(isinstance(p, str) for p in line["problems"]):
        raise ValueError("a damaged line")
    return Block(line["first"], readable, hashes, line["problems"], line["deep"], line["highest"])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process build a store; others wait."""
    from filelock import FileLock, Timeout

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_lock_of(folder))
        try:
            lock.acquire(timeout=1)
        except Timeout:
            note("Another process reads these images; waiting for it.")
            lock.acquire()
    except OSError as error:
        raise _storage_error(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def remove_store(folder: Path) -> bool:
    """Remove a store, or what was built of one; False where another process builds it now.

    Raises:
        StorageError: the rights are missing.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(_lock_of(folder), timeout=0):
            shutil.rmtree(folder)
            _lock_of(folder).unlink(missing_ok=True)  # who waits for it sees that, and makes another
    except Timeout:
        return False
    except OSError as error:
        raise StorageError(f"{folder} cannot be removed: {error.strerror}. Check your rights.") from error
    return True


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name.removesuffix('.partial')}.lock")


def _storage_error(folder: Path, error: OSError) -> StorageError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    why = "the disk is full" if full else error.strerror or str(error)
    return StorageError(
        f"The images cannot be stored in {folder}: {why}. Give another folder with --data.cache or GENDISTILL_CACHE, "
        "or --data.cache null to hold them in memory."
    )
