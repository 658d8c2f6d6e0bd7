"""Real images encoded once and kept as latents.

Legend: N images, c x h x w a latent, o orientations (the image, and its mirror image where flip is asked). A cache
folder holds ``latents-00000.safetensors`` and so on, with mean and std (n,o,c,h,w) and labels (n,), and
``latents.json`` with what the latents were made from (the key) and each shard's BLAKE2b.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TypedDict, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gendistill.data.dataset import Split
from gendistill.data.mapped import float_table
from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError, StorageError
from gendistill.generator.batch_source import CachedLatents, PixelLatents, RealLatents
from gendistill.generator.codec import Codec, PixelCodec
from gendistill.hashing import hash_file, hash_tensors
from gendistill.io import partial_of, read_json, write_json, write_tensors
from gendistill.progress import track
from gendistill.runtime import processes, to_device

FILE, FORMAT, LOCK = "latents.json", 1, ".lock"
TRANSFORM = "uint8 to [-1, 1], mirrored left to right; 1"  # another number when the meaning of a latent changes
SHARD_SIZE = 2048
IN_MEMORY, MOMENTS = 1 << 30, 2  # bytes of latents without a folder, half of them means; mean and std, at most
FIX = "Delete the folder to encode the images again, or give another finetune.latent_cache."


class CacheKey(TypedDict):
    """All that decides the latents of a split: equal keys, equal latents."""

    data: str
    images: int
    labels: str
    image_size: int
    channels: int
    transform: str
    codec: str
    flip: bool


class CacheRecord(TypedDict):
    """latents.json: the key, and the BLAKE2b of each finished shard by its file name."""

    format: int
    key: CacheKey
    shard_size: int
    dtype: str
    shards: dict[str, str]


def real_latents(
    codec: Codec,
    split: Split,
    *,
    fingerprint: str,
    flip: bool = False,
    folder: Path | None = None,
    batch_size: int = 64,
) -> RealLatents:
    """Real x0 for training: the pixels, or for an autoencoder the latents of the images.

    Of several processes the main one encodes into ``folder`` while the others wait; without a folder each encodes.

    Args:
        codec: Of the generator.
        split: Images and labels.
        fingerprint: Of the data that the split belongs to.
        flip: Also encode each image's mirror image.
        folder: Where latents are kept; those that it has of the same images and codec are read. None: in memory.
        batch_size: Images encoded at once.

    Raises:
        ArtifactError: ``folder`` has other latents or other files, or is damaged.
        StorageError: the disk is full; finished shards are kept.
    """
    if isinstance(codec, PixelCodec):
        return PixelLatents(split)
    key = cache_key(codec, split, flip=flip, fingerprint=fingerprint)
    state = processes()
    if folder is not None and not state.is_main_process:
        state.wait_for_everyone()
        return read_cache(folder, key)
    latents = write_cache(codec, split, folder, key=key, batch_size=batch_size)
    if folder is not None:
        state.wait_for_everyone()
    return latents


def cache_key(codec: Codec, split: Split, *, flip: bool, fingerprint: str) -> CacheKey:
    """The key of a split of the data with this fingerprint."""
    return {
        "data": fingerprint,
        "images": len(split),
        "labels": hash_tensors({"labels": split.labels}),
        "image_size": int(split.images.shape[-1]),
        "channels": int(split.images.shape[1]),
        "transform": TRANSFORM,
        "codec": codec.hash(),
        "flip": flip,
    }


def write_cache(
    codec: Codec,
    split: Split,
    folder: Path | None,
    *,
    key: CacheKey,
    batch_size: int = 64,
    shard_size: int = SHARD_SIZE,
) -> CachedLatents:
    """Encode every image of the split and return the latents.

    Shards of this key that are in ``folder`` already are kept, so an interrupted encoding continues.

    Args:
        folder: Where the latents are kept; None keeps them in memory, or where they take more than ``IN_MEMORY`` in
            unnamed files.
        key: ``cache_key`` of the same codec and split; its ``flip`` decides whether mirror images are encoded too.
        batch_size: Images encoded at once; it changes the latents by rounding only.
        shard_size: Images per file, in a new folder.

    Raises:
        ArtifactError: ``folder`` has other latents or other files, is damaged, or is being written by another process;
            or the autoencoder gives no finite latents.
        StorageError: the disk is full; finished shards are kept.
    """
    codec.latent_shape(int(split.images.shape[-1]))  # refuses a size that does not divide
    if folder is None:
        return _without_folder(codec, split, _spans(len(split), shard_size), key["flip"], batch_size)
    if (folder / FILE).is_file() and not _missing(folder, _read_record(folder, key)):
        return read_cache(folder, key)  # which may be read-only
    _refuse_foreign(folder)
    with _alone(folder):
        record = _open(folder, key, shard_size)
        for number, shard in _encode(codec, split, _missing(folder, record), key["flip"], batch_size):
            path = folder / _name(number)
            with _write_errors(path):
                write_tensors(path, shard)
            record["shards"][path.name] = hash_file(path)
            _write_record(folder, record)
    return read_cache(folder, key)


def _without_folder(
    codec: Codec, split: Split, spans: Mapping[int, range], flip: bool, batch_size: int
) -> CachedLatents:
    """The latents in memory, or where they take more than ``IN_MEMORY`` in files without a name."""
    tables: dict[str, Tensor] = {}
    for number, shard in _encode(codec, split, spans, flip, batch_size):
        rows = slice(spans[number].start, spans[number].stop)
        for name in shard.keys() - {"labels"}:
            if name not in tables:
                tables[name] = float_table(len(split), shard[name].shape[1:], IN_MEMORY // MOMENTS, "latents")
            tables[name][rows] = shard[name]
    return CachedLatents(split.labels.clone(), (tables["mean"],), (tables["std"],) if "std" in tables else None)


def read_cache(folder: Path, key: CacheKey) -> CachedLatents:
    """Read the latents in ``folder``: every shard is checked against its hash and mapped into memory.

    Raises:
        ArtifactError: the folder has no latents, incomplete or damaged ones, or those of other images.
    """
    record = _read_record(folder, key)
    spans, missing = _spans(key["images"], record["shard_size"]), _missing(folder, record)
    if missing:
        raise ArtifactError(
            f"{folder} lacks {len(missing)} of {len(spans)} shards of latents, such as {_name(min(missing))}; run the "
            "same command again to encode them."
        )
    return _assemble([_read_shard(folder, record, number) for number in spans])


def _spans(images: int, size: int) -> dict[int, range]:
    """The images of each shard."""
    return {n: range(start, min(start + size, images)) for n, start in enumerate(range(0, images, size))}


def _name(number: int) -> str:
    return f"latents-{number:05d}.safetensors"


def _encode(
    codec: Codec, split: Split, spans: Mapping[int, range], flip: bool, batch_size: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield (shard number, its tensors)."""
    jobs = [(n, span[i : i + batch_size]) for n, span in spans.items() for i in range(0, len(span), batch_size)]
    for number, batches in groupby(track(jobs, "encode images") if jobs else (), key=itemgetter(0)):
        parts = [_moments(codec, split, batch, flip) for _, batch in batches]
        yield number, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _moments(codec: Codec, split: Split, batch: range, flip: bool) -> dict[str, Tensor]:
    at = slice(batch.start, batch.stop)
    images = to_float(to_device(split.images[at], codec.device))
    sides = [codec.encode(x) for x in ([images, images.flip(-1)] if flip else [images])]
    found = {"mean": [side.mean for side in sides], "std": [side.std for side in sides if side.std is not None]}
    tensors = {name: torch.stack(values, 1).float().cpu() for name, values in found.items() if values}
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise ArtifactError(
            f"The {codec.name} gives latents that are not finite for images {batch.start} to {batch.stop - 1}; its "
            "weights are damaged, or need another autoencoder class."
        )
    return {**tensors, "labels": split.labels[at].clone()}


def _assemble(shards: list[dict[str, Tensor]]) -> CachedLatents:
    labels = torch.cat([shard["labels"] for shard in shards])
    stds = tuple(shard["std"] for shard in shards) if "std" in shards[0] else None
    return CachedLatents(labels, tuple(shard["mean"] for shard in shards), stds)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder and lock it, as long as the process lives; remove the unfinished files of a killed one."""
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; expected a folder for latents. Give another finetune.latent_cache.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error}). Give another finetune.latent_cache.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(
                f"Another process is encoding images into {folder}. Run this again when it is done, or give another "
                "finetune.latent_cache."
            ) from error
        except OSError:
            pass  # a file system without locks
        for leftover in (partial_of(folder / FILE), *folder.glob("latents-*.safetensors.partial")):
            leftover.unlink(missing_ok=True)
        yield


def _refuse_foreign(folder: Path) -> None:
    """Raises ArtifactError if the folder holds anything other than latents."""
    if not folder.is_dir() or (folder / FILE).exists():
        return
    own = (LOCK, partial_of(folder / FILE).name)
    others = sorted(p.name for p in folder.iterdir() if p.name not in own)
    if others:
        raise ArtifactError(
            f"{folder} has no {FILE} but other files, such as {others[0]!r}. Give an empty or new folder as "
            "finetune.latent_cache."
        )


def _open(folder: Path, key: CacheKey, shard_size: int) -> CacheRecord:
    """Read latents.json, or create it in an empty folder."""
    if (folder / FILE).exists():
        return _read_record(folder, key)
    record: CacheRecord = {
        "format": FORMAT,
        "key": key,
        "shard_size": shard_size,
        "dtype": "float32",
        "shards": {},
    }
    _write_record(folder, record)
    return record


def _read_record(folder: Path, key: CacheKey) -> CacheRecord:
    """latents.json of a folder, refused if its key is another."""
    required = ("key", "shard_size", "shards")
    record = read_json(folder / FILE, kind="a cache of latents", required=required, format=FORMAT, fix=FIX)
    found, wanted = record["key"], dict(key)
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if names:
        differences = "; ".join(f"{name} was {found.get(name)!r}, is now {wanted.get(name)!r}" for name in names)
        raise ArtifactError(f"The latents in {folder} are of other images or another codec: {differences}. {FIX}")
    return cast("CacheRecord", record)


def _missing(folder: Path, record: CacheRecord) -> dict[int, range]:
    """The shards that are not finished, or were deleted."""
    spans = _spans(record["key"]["images"], record["shard_size"])
    there = {name for name in record["shards"] if (folder / name).is_file()}
    return {number: span for number, span in spans.items() if _name(number) not in there}


def _read_shard(folder: Path, record: CacheRecord, number: int) -> dict[str, Tensor]:
    path = folder / _name(number)
    expected, found = record["shards"][path.name], hash_file(path)
    if found != expected:
        raise ArtifactError(
            f"{path} is damaged: its BLAKE2b is {found}, {FILE} says {expected}. Delete this file and run the same "
            "command again: only this one is encoded again."
        )
    return load_file(path)


def _write_record(folder: Path, record: CacheRecord) -> None:
    with _write_errors(folder / FILE):
        write_json(folder / FILE, record)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turn the error of a write into a StorageError that says how to continue."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path} cannot be written ({error}). What was finished is kept: make room, or give another "
            "finetune.latent_cache, and run the same command again (with --resume_from_checkpoint latest)."
        ) from error
