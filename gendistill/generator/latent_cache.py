"""Real x0 for training: pixels as they are, or latents encoded once and kept.

Legend: N images, c x h x w a latent, o orientations (the image, and its mirror image where flip is asked). A cache
folder holds ``latents-00000.safetensors`` and so on, with mean and std (n,o,c,h,w) and labels (n,), and
``latents.json`` with what the latents were made from (the key) and each shard's BLAKE2b.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gendistill.data.dataset import Split
from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError, StorageError
from gendistill.generator.codec import Codec, PixelCodec
from gendistill.hashing import hash_tensors
from gendistill.io import partial_of, read_json, write_json, write_tensors
from gendistill.progress import track
from gendistill.runtime import processes

FILE, FORMAT, LOCK = "latents.json", 1, ".lock"
TRANSFORM = "uint8 to [-1, 1], mirrored left to right; 1"  # another number when the meaning of a latent changes
SHARD_SIZE = 2048
MEND = "Delete the folder to encode anew, or give another finetune.latent_cache."


class RealLatents(Protocol):
    """Where training draws from: ``labels`` int64 (N,), ``shape`` (c,h,w) of one x0."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def needs_noise(self) -> bool:
        """Whether x0 is a draw, of the noise given, from a distribution by image."""

    def x0(self, index: Tensor, flipped: Tensor, noise: Tensor | None = None) -> Tensor:
        """float32 (b,c,h,w) on the CPU of the images ``index`` int64 (b,), mirrored where ``flipped`` bool (b,).

        ``noise`` (b,c,h,w) is standard normal; without it, or where none is needed, x0 is the mean.
        """


@dataclass(frozen=True)
class PixelLatents:
    """The images themselves, in [-1, 1], turned to floats when drawn."""

    split: Split
    needs_noise: ClassVar[bool] = False

    @property
    def labels(self) -> Tensor:
        return self.split.labels

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.split.images.shape[1:])

    def x0(self, index: Tensor, flipped: Tensor, noise: Tensor | None = None) -> Tensor:
        images = self.split.images[index]
        return to_float(torch.where(flipped[:, None, None, None], images.flip(-1), images))


@dataclass(frozen=True)
class CachedLatents:
    """x0 = mean + std * noise, from shards of one size but the last; means and stds each (n,o,c,h,w) a shard.

    Shards read from a folder are mapped into memory: they take room only while the system has it to spare.
    """

    labels: Tensor
    means: tuple[Tensor, ...]
    stds: tuple[Tensor, ...] | None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.means[0].shape[2:])

    @property
    def needs_noise(self) -> bool:
        return self.stds is not None

    def x0(self, index: Tensor, flipped: Tensor, noise: Tensor | None = None) -> Tensor:
        if self.means[0].shape[1] == 1 and bool(flipped.any()):
            raise ValueError("a mirrored image is asked for, but the latents were encoded without flip.")
        mean = _gather(self.means, index, flipped)
        if self.stds is None or noise is None:
            return mean
        if noise.shape != mean.shape:
            raise ValueError(f"noise is {tuple(noise.shape)}; expected {tuple(mean.shape)}.")
        return mean + _gather(self.stds, index, flipped) * noise


def _gather(shards: tuple[Tensor, ...], index: Tensor, flipped: Tensor) -> Tensor:
    """Rows (b,c,h,w) of shards (n,o,c,h,w)."""
    size = len(shards[0])
    shard, row, side = index // size, index % size, flipped.long()
    rows = torch.empty(len(index), *shards[0].shape[2:])
    for number in shard.unique().tolist():
        at = shard == number
        rows[at] = shards[number][row[at], side[at]]
    return rows


def real_latents(
    codec: Codec,
    split: Split,
    *,
    fingerprint: str,
    flip: bool = False,
    folder: Path | None = None,
    batch_size: int = 64,
    device: torch.device | str | None = None,
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
        device: Where to move the codec; None leaves it where it is.

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
    latents = write_cache(codec, split, folder, key=key, flip=flip, batch_size=batch_size, device=device)
    if folder is not None:
        state.wait_for_everyone()
    return latents


def cache_key(codec: Codec, split: Split, *, flip: bool, fingerprint: str) -> dict[str, Any]:
    """All that decides the latents of a split of the data with this fingerprint; equal keys, equal latents."""
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
    key: Mapping[str, Any],
    flip: bool,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    shard_size: int = SHARD_SIZE,
) -> CachedLatents:
    """Encode every image of the split, once or with its mirror image, and return the latents.

    Shards that ``folder`` has of this key are kept: what was interrupted goes on, what is whole is only read.

    Args:
        folder: Where the latents are kept; None keeps them in memory alone.
        key: ``cache_key`` of the same codec, split and flip.
        batch_size: Images encoded at once; the latents do not depend on it but for rounding.
        device: Where to move the codec; None leaves it where it is.
        shard_size: Images a file, of a new folder.

    Raises:
        ArtifactError: ``folder`` has other latents or other files, is damaged, or is being written by another process;
            or the autoencoder gives no finite latents.
        StorageError: the disk took no more; finished shards are kept.
    """
    if key["flip"] != flip:
        raise ValueError(f"flip is {flip}, but the key says {key['flip']}.")
    if device is not None:
        codec.to(device)
    codec.latent_shape(int(split.images.shape[-1]))
    if folder is None:
        spans = _spans(len(split), shard_size)
        return _assemble([shard for _, shard in _encode(codec, split, spans, flip, batch_size)])
    if (folder / FILE).is_file() and not _missing(folder, _record_of(folder, key)):
        return read_cache(folder, key)  # which may be read-only
    _refuse_foreign(folder)
    with _alone(folder):
        record = _open(folder, key, shard_size)
        for number, shard in _encode(codec, split, _missing(folder, record), flip, batch_size):
            path = folder / _name(number)
            with _write_errors(path):
                write_tensors(path, shard)
            record["shards"][path.name] = _hash(path)
            _write_record(folder, record)
    return read_cache(folder, key)


def read_cache(folder: Path, key: Mapping[str, Any]) -> CachedLatents:
    """The latents in ``folder``, every shard checked against its hash and mapped into memory.

    Raises:
        ArtifactError: there are none, others, too few, or damaged ones.
    """
    record = _record_of(folder, key)
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
    """(shard number, its tensors) one after another."""
    jobs = [(n, span[i : i + batch_size]) for n, span in spans.items() for i in range(0, len(span), batch_size)]
    for number, batches in groupby(track(jobs, "encode images") if jobs else (), key=itemgetter(0)):
        parts = [_moments(codec, split, batch, flip) for _, batch in batches]
        yield number, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _moments(codec: Codec, split: Split, batch: range, flip: bool) -> dict[str, Tensor]:
    at = slice(batch.start, batch.stop)
    images = to_float(split.images[at].to(codec.device))
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
    """Make the folder and hold its lock, which ends with the process; remove what a killed one left half written."""
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
    """Nothing is written to, or cleared from, a folder that holds anything but latents."""
    if not folder.is_dir() or (folder / FILE).exists():
        return
    own = (LOCK, partial_of(folder / FILE).name)
    others = sorted(p.name for p in folder.iterdir() if p.name not in own)
    if others:
        raise ArtifactError(
            f"{folder} has no {FILE} but other files, such as {others[0]!r}. Give an empty or new folder as "
            "finetune.latent_cache."
        )


def _open(folder: Path, key: Mapping[str, Any], shard_size: int) -> dict[str, Any]:
    """latents.json of this key, made in an empty folder."""
    if (folder / FILE).exists():
        return _record_of(folder, key)
    record = {"format": FORMAT, "key": dict(key), "shard_size": shard_size, "dtype": "float32", "shards": {}}
    _write_record(folder, record)
    return record


def _read_record(folder: Path) -> dict[str, Any]:
    return read_json(
        folder / FILE,
        kind="a cache of latents",
        required=("key", "shard_size", "shards"),
        format=FORMAT,
        fix=MEND,
    )


def _record_of(folder: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """latents.json, refused where its key is another."""
    record = _read_record(folder)
    found = record["key"]
    names = [name for name in {**key, **found} if found.get(name) != key.get(name)]
    if names:
        differences = "; ".join(f"{name} was {found.get(name)!r}, is now {key.get(name)!r}" for name in names)
        raise ArtifactError(f"The latents in {folder} are of other images or another codec: {differences}. {MEND}")
    return record


def _missing(folder: Path, record: Mapping[str, Any]) -> dict[int, range]:
    """The shards that were never finished, or are gone."""
    spans = _spans(record["key"]["images"], record["shard_size"])
    there = {name for name in record["shards"] if (folder / name).is_file()}
    return {number: span for number, span in spans.items() if _name(number) not in there}


def _read_shard(folder: Path, record: Mapping[str, Any], number: int) -> dict[str, Tensor]:
    path = folder / _name(number)
    expected, found = record["shards"][path.name], _hash(path)
    if found != expected:
        raise ArtifactError(
            f"{path} is damaged: its BLAKE2b is {found}, {FILE} says {expected}. Delete this file and run the same "
            "command again: only this one is encoded anew."
        )
    return load_file(path)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
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
