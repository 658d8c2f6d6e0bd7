"""What training draws from: equal to encoding by hand, and a cache that is never stale, half written or damaged."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gendistill import progress
from gendistill.data.dataset import RealData, Split
from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError, ConfigError, StorageError
from gendistill.generator import latent_cache
from gendistill.generator.batch_source import CachedLatents, PixelLatents, RealLatents
from gendistill.generator.codec import Codec, LatentCodec, Moments, PixelCodec
from gendistill.generator.latent_cache import cache_key, read_cache, real_latents, write_cache
from gendistill.hashing import hash_bytes
from gendistill.progress import show_progress
from tests.generator.autoencoders import kl, tiny
from tests.helpers import no_file_above

COUNT, SHARD = 20, 8  # three shards of 8, 8 and 4 images
OPTIONS: dict[str, Any] = {"batch_size": 3, "shard_size": SHARD}
SHARDS = [f"latents-0000{i}.safetensors" for i in range(3)]


class Watched(LatentCodec):
    """Calls ``before`` with the number of images encoded so far, orientations counted apart."""

    encoded = 0
    before: Callable[[int], None] = staticmethod(lambda count: None)

    def _encode(self, images: Tensor) -> Moments:
        self.before(self.encoded)
        self.encoded += len(images)
        return super()._encode(images)

    def _probe(self) -> None:
        pass


@pytest.fixture(scope="module")
def split(digits: RealData) -> Split:
    return Split(digits.train.images[:COUNT], digits.train.labels[:COUNT])


def key_of(split: Split, codec: Codec, flip: bool = True) -> dict[str, Any]:
    return cache_key(codec, split, flip=flip, fingerprint="some-data")


def encode(split: Split, folder: Path | None, codec: Codec | None = None, flip: bool = True) -> CachedLatents:
    codec = codec or LatentCodec(kl(), 1)
    return write_cache(codec, split, folder, key=key_of(split, codec, flip), **OPTIONS)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(split: Split, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an uninterrupted encoding."""
    folder = tmp_path_factory.mktemp("whole")
    encode(split, folder)
    return contents(folder)


def draws(latents: RealLatents) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    index = torch.tensor([19, 0, 7, 8, 3, 3, 15])
    flipped = torch.tensor([True, False, False, True, True, False, True])
    noise = torch.randn(7, *latents.shape, generator=torch.Generator().manual_seed(3))
    return index, flipped, noise, latents.x0(index, flipped, noise)


# --- what is drawn


def test_pixels_are_drawn_in_range_and_mirrored(split: Split) -> None:
    latents = PixelLatents(split)
    index, flipped, _, x0 = draws(latents)
    assert (latents.shape, latents.needs_noise) == ((1, 8, 8), False)
    assert torch.equal(latents.labels, split.labels)
    assert x0.dtype == torch.float32
    for x, i, mirrored in zip(x0, index, flipped, strict=True):
        image = split.images[i].float() / 127.5 - 1
        assert torch.equal(x, image.flip(-1) if mirrored else image)
    assert torch.equal(latents.x0(index, flipped), x0)


@pytest.mark.parametrize("kept", [False, True])
@torch.no_grad()
def test_kl_latents_are_draws_from_the_posterior_of_the_mirrored_image(
    split: Split, tmp_path: Path, kept: bool
) -> None:
    latents = encode(split, tmp_path if kept else None)
    autoencoder = kl().eval()
    index, flipped, noise, x0 = draws(latents)
    assert (latents.shape, latents.needs_noise, x0.dtype) == ((4, 4, 4), True, torch.float32)
    assert torch.equal(latents.labels, split.labels)
    images = to_float(split.images).repeat(1, 3, 1, 1)
    for x, e, i, mirrored in zip(x0, noise, index, flipped, strict=True):
        posterior = autoencoder.encode((images[i].flip(-1) if mirrored else images[i])[None]).latent_dist
        torch.testing.assert_close(x[None], 0.7 * (posterior.mean + posterior.std * e), rtol=1e-4, atol=1e-5)
    means = latents.x0(index, flipped)
    assert torch.equal(means, latents.x0(index, flipped, torch.zeros_like(noise)))
    assert not torch.allclose(means, x0)


def test_latents_without_spread_need_no_noise(split: Split, tmp_path: Path) -> None:
    codec = LatentCodec(tiny(), 1)
    latents = encode(split, tmp_path, codec)
    index, flipped, _, x0 = draws(latents)
    assert not latents.needs_noise
    images = to_float(split.images[index])
    mirrored = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    torch.testing.assert_close(x0, codec.encode(mirrored).mean)


def test_without_flip_mirrored_images_are_neither_encoded_nor_given(split: Split) -> None:
    codec = Watched(kl(), 1)
    latents = encode(split, None, codec, flip=False)
    assert codec.encoded == COUNT
    index = torch.arange(COUNT)
    straight = torch.zeros(COUNT, dtype=torch.bool)
    torch.testing.assert_close(latents.x0(index, straight), codec.encode(to_float(split.images)).mean)
    with pytest.raises(ValueError, match="without flip"):
        latents.x0(index, ~straight)
    with pytest.raises(ValueError, match="noise is"):
        latents.x0(index, straight, torch.zeros(COUNT, 1, 4, 4))


def test_memory_and_folder_hold_the_same(split: Split, tmp_path: Path) -> None:
    memory, folder = encode(split, None), encode(split, tmp_path)
    every = torch.arange(COUNT)
    for flipped in (torch.zeros(COUNT, dtype=torch.bool), torch.ones(COUNT, dtype=torch.bool)):
        noise = torch.ones(COUNT, 4, 4, 4)
        assert torch.equal(memory.x0(every, flipped, noise), folder.x0(every, flipped, noise))


def test_real_latents_chooses_by_codec(split: Split, tmp_path: Path) -> None:
    assert isinstance(real_latents(PixelCodec(1), split, fingerprint="f"), PixelLatents)
    codec = LatentCodec(kl(), 1)
    folder = tmp_path / "new" / "latents"
    latents = real_latents(codec, split, fingerprint="f", flip=True, folder=folder)
    assert isinstance(latents, CachedLatents)
    key = cache_key(codec, split, flip=True, fingerprint="f")
    assert torch.equal(draws(read_cache(folder, key))[-1], draws(latents)[-1])
    assert torch.equal(draws(real_latents(codec, split, fingerprint="f", flip=True))[-1], draws(latents)[-1])


def test_image_size_that_does_not_divide_is_refused_before_anything_is_written(split: Split, tmp_path: Path) -> None:
    odd = Split(split.images[..., :7, :7], split.labels)
    with pytest.raises(ConfigError, match="multiple of 2"):
        encode(odd, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_latents_that_are_not_finite_are_refused(split: Split, tmp_path: Path) -> None:
    autoencoder = kl()
    torch.nn.init.constant_(autoencoder.encoder.conv_in.bias, float("nan"))
    with pytest.raises(ArtifactError, match="not finite for images 0 to 2"):
        encode(split, tmp_path, LatentCodec(autoencoder, 1))
    assert not list(tmp_path.glob("*.safetensors"))


def test_progress_counts_the_batches(
    split: Split, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "OFTEN", 0.0)
    with show_progress():
        encode(split, None)
    assert "encode images" in capsys.readouterr().err


# --- the folder


def test_files_say_what_they_hold(whole: dict[str, bytes], split: Split) -> None:
    record = json.loads(whole["latents.json"])
    assert record["key"] == key_of(split, LatentCodec(kl(), 1))
    assert record["dtype"] == "float32"
    assert record["shards"] == {name: hash_bytes(whole[name]) for name in SHARDS}
    assert set(whole) == {*SHARDS, "latents.json", ".lock"}


def test_a_whole_cache_is_read_and_mapped_not_encoded(split: Split, tmp_path: Path) -> None:
    encode(split, tmp_path)
    before = contents(tmp_path)
    codec = Watched(kl(), 1)
    with (tmp_path / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # reading needs no lock
        latents = encode(split, tmp_path, codec)
    assert codec.encoded == 0
    assert contents(tmp_path) == before
    maps = Path("/proc/self/maps")
    if maps.is_file():
        assert str(tmp_path / SHARDS[1]) in maps.read_text()
    assert latents.shape == (4, 4, 4)


@pytest.mark.parametrize("name", ["data", "images", "labels", "image_size", "channels", "transform", "codec", "flip"])
def test_a_cache_of_another_key_is_never_used(split: Split, tmp_path: Path, name: str) -> None:
    codec = LatentCodec(kl(), 1)
    key = key_of(split, codec)
    assert set(key) == {"data", "images", "labels", "image_size", "channels", "transform", "codec", "flip"}
    other = {**key, name: {"flip": False, "images": 19}.get(name, "other")}
    encode(split, tmp_path, codec)
    before = contents(tmp_path)
    message = re.escape(f"{name} was {key[name]!r}, is now {other[name]!r}. Delete the folder")
    for call in (
        lambda: read_cache(tmp_path, other),
        lambda: write_cache(codec, split, tmp_path, key=other, **OPTIONS),
    ):
        with pytest.raises(ArtifactError, match=message) as error:
            call()
        assert str(error.value).count(", is now ") == 1
    assert contents(tmp_path) == before


def test_every_change_of_input_changes_the_key(split: Split, digits: RealData) -> None:
    key = key_of(split, LatentCodec(kl(), 1))
    wide = Split(split.images.repeat(1, 1, 2, 2), split.labels)
    colour = Split(split.images.repeat(1, 3, 1, 1), split.labels)
    others = {
        "data": cache_key(LatentCodec(kl(), 1), split, flip=True, fingerprint=digits.fingerprint()),
        "images": key_of(Split(split.images[:7], split.labels[:7]), LatentCodec(kl(), 1)),
        "labels": key_of(Split(split.images, split.labels.flip(0)), LatentCodec(kl(), 1)),
        "image_size": key_of(wide, LatentCodec(kl(), 1)),
        "channels": key_of(colour, LatentCodec(kl(), 3)),
        "codec": key_of(split, LatentCodec(kl(seed=1), 1)),
        "flip": key_of(split, LatentCodec(kl(), 1), flip=False),
    }
    for name, other in others.items():
        assert other[name] != key[name]
        assert {k for k in key if key[k] != other[k]} <= {name, "labels"}


# --- interruptions


@pytest.mark.parametrize("at", [0, 3, 14, 16, 25, 39])
def test_an_interrupted_encoding_goes_on_and_ends_with_the_same_bytes(
    split: Split, tmp_path: Path, whole: dict[str, bytes], at: int
) -> None:
    def interrupt(count: int) -> None:
        if count >= at:
            raise KeyboardInterrupt

    codec = Watched(kl(), 1)
    codec.before = interrupt
    key = json.loads(whole["latents.json"])["key"]
    with pytest.raises(KeyboardInterrupt):
        write_cache(codec, split, tmp_path, key=key, **OPTIONS)
    finished = at // (2 * SHARD)
    assert [p.name for p in sorted(tmp_path.glob("*.safetensors*"))] == SHARDS[:finished]
    with pytest.raises(ArtifactError, match=rf"lacks {3 - finished} of 3 shards.*{SHARDS[finished]}; run the same"):
        read_cache(tmp_path, key)
    again = Watched(kl(), 1)
    write_cache(again, split, tmp_path, key=key, **{**OPTIONS, "shard_size": 5})  # the folder's size counts
    assert again.encoded == 2 * (COUNT - SHARD * finished)
    assert contents(tmp_path) == whole


def test_a_shard_that_was_not_entered_and_half_a_file_are_written_anew(
    split: Split, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Killed after the rename of shard 1, before latents.json names it."""
    record = json.loads(whole["latents.json"])
    record["shards"] = {SHARDS[0]: record["shards"][SHARDS[0]]}
    (tmp_path / "latents.json").write_text(json.dumps(record))
    (tmp_path / SHARDS[0]).write_bytes(whole[SHARDS[0]])
    (tmp_path / SHARDS[1]).write_bytes(whole[SHARDS[1]][:-1])
    for name in (SHARDS[0], SHARDS[2]):
        (tmp_path / f"{name}.partial").write_bytes(whole[name][:100])
    (tmp_path / "latents.json.partial").write_text("{")
    encode(split, tmp_path)
    assert contents(tmp_path) == whole


def test_a_killed_process_leaves_whole_shards_and_no_lock(split: Split, tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        codec = Watched(kl(), 1)
        codec.before = lambda count: os.kill(os.getpid(), signal.SIGKILL) if count >= 24 else None
        encode(split, tmp_path, codec)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert [p.name for p in tmp_path.glob("*.safetensors")] == SHARDS[:1]
    codec = Watched(kl(), 1)
    latents = encode(split, tmp_path, codec)
    assert codec.encoded == 2 * (COUNT - SHARD)
    torch.testing.assert_close(draws(latents)[-1], draws(encode(split, None))[-1])


def test_a_full_disk_keeps_whole_shards_and_nothing_else(split: Split, tmp_path: Path, whole: dict[str, bytes]) -> None:
    def fill(count: int) -> None:
        if count >= 2 * SHARD:
            full.enter_context(no_file_above(5000))

    assert len(whole[SHARDS[1]]) > 5000 > len(whole["latents.json"])
    codec = Watched(kl(), 1)
    codec.before = fill
    key = json.loads(whole["latents.json"])["key"]
    said = rf"{SHARDS[1]} cannot be written .*File too large.*make room"
    with ExitStack() as full, pytest.raises(StorageError, match=said):
        write_cache(codec, split, tmp_path, key=key, **OPTIONS)
    assert set(contents(tmp_path)) == {SHARDS[0], "latents.json", ".lock"}
    encode(split, tmp_path)
    assert contents(tmp_path) == whole


# --- damage


def flip_a_bit(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize("damage", [flip_a_bit, lambda data: data[:-1], lambda data: b""], ids=["bit", "cut", "empty"])
def test_a_damaged_shard_is_named_and_alone_encoded_anew(
    split: Split, tmp_path: Path, whole: dict[str, bytes], damage: Callable[[bytes], bytes]
) -> None:
    encode(split, tmp_path)
    path = tmp_path / SHARDS[1]
    path.write_bytes(damage(whole[SHARDS[1]]))
    key = json.loads(whole["latents.json"])["key"]
    for call in (lambda: read_cache(tmp_path, key), lambda: encode(split, tmp_path)):
        with pytest.raises(ArtifactError, match=rf"{SHARDS[1]} is damaged.*Delete this file"):
            call()
    path.unlink()
    codec = Watched(kl(), 1)
    write_cache(codec, split, tmp_path, key=key, **OPTIONS)
    assert codec.encoded == 2 * SHARD
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is damaged"), ("[]", "is damaged"), ("{}", "has format None"), ('{"format": 99}', "this version reads 1")],
)
def test_a_damaged_or_foreign_record_is_refused(split: Split, tmp_path: Path, text: str, message: str) -> None:
    encode(split, tmp_path)
    (tmp_path / "latents.json").write_text(text)
    for call in (lambda: encode(split, tmp_path), lambda: read_cache(tmp_path, {})):
        with pytest.raises(ArtifactError, match=rf"latents\.json .*{message}|latents\.json {message}"):
            call()


def test_folders_of_others_are_left_alone(split: Split, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(ArtifactError, match=r"no latents\.json but other files, such as 'thesis\.tex'"):
        encode(split, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "chapter 1"
    with pytest.raises(ArtifactError, match="is a file"):
        encode(split, tmp_path / "thesis.tex")
    with pytest.raises(StorageError, match="cannot be written"):
        encode(split, tmp_path / "thesis.tex" / "below")
    with pytest.raises(ArtifactError, match="is not a cache of latents"):
        read_cache(tmp_path, {})


def test_two_processes_do_not_write_at_once(split: Split, tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # refuses whoever wants the folder alone
        with pytest.raises(ArtifactError, match="Another process is encoding"):
            encode(split, tmp_path)
    encode(split, tmp_path)


def test_latents_that_take_much_memory_lie_in_files_that_have_no_name(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, usual = LatentCodec(kl(), 1), encode(split, None)
    shape = codec.latent_shape(int(split.images.shape[-1]))
    size = 4 * 2 * 2 * COUNT * shape[0] * shape[1] * shape[2]
    monkeypatch.setenv("GENDISTILL_CACHE", str(tmp_path))
    for limit, files in ((size, 0), (size - 2, 2)):
        monkeypatch.setattr(latent_cache, "IN_MEMORY", limit)
        made: list[str] = []
        watched = Watched(kl(), 1)
        watched.before = lambda count: made.extend(path.name for path in tmp_path.iterdir())  # noqa: B023
        found = encode(split, None, watched)
        assert made == []
        assert list(tmp_path.iterdir()) == []
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
        assert len(mapped) == files  # a kill leaves nothing
        for ours, theirs in zip(draws(found), draws(usual), strict=True):
            assert torch.equal(ours, theirs)
