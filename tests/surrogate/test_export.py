"""Exports: what other readers make of each format is what the set holds."""

from __future__ import annotations

import io
import json
import shlex
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_dataset
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import gendistill
from gendistill.data.crops import Views
from gendistill.errors import ArtifactError, ConfigError
from gendistill.surrogate.card.card import add_evidence
from gendistill.surrogate.export import export, write_export, write_parquet, write_webdataset
from gendistill.surrogate.hub_datasets import push, without_local_paths
from gendistill.surrogate.manifest import verify
from gendistill.surrogate.multi_formation import Factor, views_in
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.soft_labels import SoftLabels, packed
from gendistill.surrogate.stored import StoredSet
from tests.helpers import edit, files
from tests.surrogate.sets import make

CLASSES = ("zebra", "a/b", "größe.tar.png", "10", "2", "猫 [x]*")  # in no sorted order, and not their folders' names


def soft_labels(views: int, mode: str, top_k: int | None = None) -> SoftLabels:
    rng, k = torch.Generator().manual_seed(1), len(CLASSES)
    rows = (views,) if mode == "per_image" else (3, min(4, views))
    values, indices = packed(torch.softmax(3 * torch.randn(*rows, k, generator=rng), -1), top_k)
    kept = {} if mode == "online" else {"values": values, "indices": indices}
    return SoftLabels(
        mode=mode,
        classes=k,
        temperature=2.5,
        views=Views(seed=3, batch_size=4),
        teacher={"hash": "t"},
        top_k=top_k,
        **kept,
    )


def made(ipc: int = 2, channels: int = 3, factor: Factor = 1, size: int = 8, **labels: Any) -> SurrogateSet:
    rng, n = torch.Generator().manual_seed(ipc), ipc * len(CLASSES)
    images = torch.randint(0, 256, (n, channels, size, size), generator=rng, dtype=torch.uint8)
    soft = soft_labels(n * views_in(factor), **labels) if labels else None
    order = torch.arange(len(CLASSES)).repeat_interleave(ipc)
    return SurrogateSet(images, order, CLASSES, {"method": "random", "seed": 5}, factor, soft)


CASES: dict[str, Callable[[], SurrogateSet]] = {
    "hard": made,
    "grey": lambda: made(channels=1),
    "decoded": lambda: made(factor=2, mode="per_image"),
    "decoded by several factors": lambda: made(factor=(1, 2), mode="per_image"),
    "dense": lambda: made(mode="per_image"),
    "top_k": lambda: made(mode="per_image", top_k=3),
    "per_view": lambda: made(mode="per_view", top_k=2),
    "online": lambda: made(mode="online"),
}
PER_IMAGE = ("decoded", "decoded by several factors", "dense", "top_k")
each_case = pytest.mark.parametrize("case", CASES)


def exported(tmp_path: Path, format: Any, *sets: SurrogateSet) -> Path:
    """The folder of an export of these sets."""
    for number, surrogate in enumerate(sets):
        surrogate.save(tmp_path / str(number))
    (tmp_path / "out").mkdir()
    write_export([StoredSet.open(tmp_path / str(number)) for number in range(len(sets))], tmp_path / "out", format)
    return tmp_path / "out"


def loaded(tmp_path: Path, *arguments: str) -> Any:
    return load_dataset(*arguments, split="train", cache_dir=str(tmp_path / "cache"))


def tensor(image: Image.Image) -> Tensor:
    array = np.asarray(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1).copy()).movedim(-1, 0)


def tensors(images: Any) -> Tensor:
    return torch.stack([tensor(image) for image in images])


def targets(surrogate: SurrogateSet) -> Tensor:
    """(N,K), or (N,V,K) where images are decoded to several."""
    assert surrogate.soft_labels is not None
    views = len(surrogate.labels) * surrogate.views
    rows = surrogate.soft_labels.probabilities(torch.arange(views))
    return rows if surrogate.factor == 1 else rows.unflatten(0, (-1, surrogate.views))


def check_companions(out: Path, source: Path, surrogate: SurrogateSet) -> None:
    """Provenance, and the soft labels that have no place in the rows."""
    assert (out / "manifest.json").read_bytes() == (source / "manifest.json").read_bytes()
    soft = surrogate.soft_labels
    assert (out / "soft_labels.json").exists() == (soft is not None)
    if soft is not None and soft.mode == "per_view":
        assert load_file(out / "soft_labels.safetensors").keys() == soft.tensors.keys()
        assert (out / "soft_labels.safetensors").read_bytes() == (source / "soft_labels.safetensors").read_bytes()


# one set in each format


@each_case
def test_an_image_folder_is_the_set_itself(tmp_path: Path, case: str) -> None:
    surrogate = CASES[case]()
    out = exported(tmp_path, "imagefolder", surrogate)
    assert SurrogateSet.load(out).content_hash() == surrogate.content_hash()
    assert SurrogateSet.load(out).meta == surrogate.meta
    assert not list(verify(out))
    assert files(out, "train/**/*") == files(tmp_path / "0", "train/**/*")


@pytest.mark.parametrize("case", ["hard", "grey"])
def test_datasets_and_torchvision_read_the_image_folder(tmp_path: Path, case: str) -> None:
    from torchvision.datasets import ImageFolder

    surrogate = CASES[case]()
    out = exported(tmp_path, "imagefolder", surrogate)
    folders = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["folders"]
    rows = loaded(tmp_path, str(out))
    names = rows.features["label"].names
    found = {(names[row["label"]], tensor(row["image"]).numpy().tobytes()) for row in rows}
    wanted = [(folders[label], image) for image, label in zip(surrogate.images, surrogate.labels.tolist(), strict=True)]
    assert found == {(folder, image.numpy().tobytes()) for folder, image in wanted}
    read = ImageFolder(str(out / "train"))
    rgb = {(read.classes[label], tensor(image).numpy().tobytes()) for image, label in read}
    assert rgb == {(folder, image.expand(3, -1, -1).numpy().tobytes()) for folder, image in wanted}


@each_case
def test_parquet_has_pixels_labels_and_true_names(tmp_path: Path, case: str) -> None:
    surrogate = CASES[case]()
    out = exported(tmp_path, "parquet", surrogate)
    rows = loaded(tmp_path, str(out))
    assert torch.equal(tensors(rows["image"]), surrogate.images)
    assert rows["label"][:] == surrogate.labels.tolist()
    assert tuple(rows.features["label"].names) == CLASSES
    if case in PER_IMAGE:
        assert torch.equal(torch.tensor(rows["soft_label"][:]), targets(surrogate))
    else:
        assert set(rows.column_names) == {"image", "label"}
    check_companions(out, tmp_path / "0", surrogate)


def test_parquet_holds_the_very_files(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    out = exported(tmp_path, "parquet", made())
    stored = pq.read_table(out / "train-00000-of-00001.parquet")["image"].to_pylist()
    assert {row["path"]: row["bytes"] for row in stored} == files(tmp_path / "0", "train/**/*.png")


def test_timm_reads_parquet(tmp_path: Path) -> None:
    from timm.data import create_dataset

    surrogate = made(mode="per_image")
    out = exported(tmp_path, "parquet", surrogate)
    read = create_dataset(f"hfds/{out}", root=str(tmp_path / "cache"), split="train")
    assert [label for _, label in read] == surrogate.labels.tolist()
    assert torch.equal(tensors(image for image, _ in read), surrogate.images)
    assert read.reader.class_to_idx == {name: label for label, name in enumerate(CLASSES)}


@each_case
def test_datasets_reads_webdataset(tmp_path: Path, case: str) -> None:
    surrogate = CASES[case]()
    out = exported(tmp_path, "webdataset", surrogate)
    rows = loaded(tmp_path, str(out))
    assert torch.equal(tensors(rows["png"]), surrogate.images)
    assert rows["cls"][:] == surrogate.labels.tolist()
    assert rows["__key__"][:] == [f"{i:08d}" for i in range(len(rows))]
    if case in PER_IMAGE:
        assert torch.equal(torch.tensor(rows["npy"][:]), targets(surrogate))
    else:
        assert "npy" not in rows.column_names
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8"))["classes"] == list(CLASSES)
    check_companions(out, tmp_path / "0", surrogate)
    by_name = load_dataset("webdataset", data_dir=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert by_name["cls"][:] == surrogate.labels.tolist()


def test_the_webdataset_package_reads_webdataset(tmp_path: Path) -> None:
    package = pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    surrogate = made(factor=2, mode="per_image", top_k=3)
    out = exported(tmp_path, "webdataset", surrogate)
    samples = list(package.WebDataset(str(out / "train-000000.tar"), shardshuffle=False).decode("pil"))
    assert torch.equal(tensors(sample["png"] for sample in samples), surrogate.images)
    assert [sample["cls"] for sample in samples] == surrogate.labels.tolist()
    assert torch.equal(torch.tensor(np.stack([sample["npy"] for sample in samples])), targets(surrogate))


def test_equal_sets_give_equal_tars(tmp_path: Path) -> None:
    outs = []
    for name in "ab":
        (tmp_path / name).mkdir()
        outs.append(exported(tmp_path / name, "webdataset", made(mode="per_image")) / "train-000000.tar")
    assert outs[0].read_bytes() == outs[1].read_bytes()
    with tarfile.open(outs[0]) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


# DD-Ranking, read as its evaluators do


def ddranking(folder: Path) -> tuple[Tensor, Tensor, float]:
    images, labels, rate = (torch.load(folder / f"{n}.pt", weights_only=True) for n in ("images", "labels", "lr"))
    return images, labels, rate.item()


CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize(("size", "statistics"), [(8, CIFAR), (32, CIFAR), (64, IMAGENET)])
def test_ddranking_sees_images_as_it_sees_its_own(tmp_path: Path, size: int, statistics: dict[str, Any]) -> None:
    from torchvision.transforms import Compose, Normalize, ToTensor

    surrogate = made(size=size)
    out = exported(tmp_path, "ddranking", surrogate)
    images, labels, rate = ddranking(out)
    own = Compose([ToTensor(), Normalize(**statistics)])
    wanted = torch.stack([own(Image.fromarray(image.movedim(0, -1).numpy())) for image in surrogate.images])
    assert torch.allclose(images, wanted, atol=1e-6)
    assert torch.equal(labels, surrogate.labels)
    assert rate == pytest.approx(0.01)


@each_case
def test_ddranking_trains_on_the_decoded_views(tmp_path: Path, case: str) -> None:
    from torchvision.datasets import ImageFolder

    surrogate = CASES[case]()
    out = exported(tmp_path, "ddranking", surrogate)
    images, labels, _ = ddranking(out)
    views = surrogate.split.images.expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(CIFAR[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert images.dtype == torch.float32
    assert torch.equal(((images * std + mean) * 255).round().to(torch.uint8), views)
    if case in PER_IMAGE:
        assert torch.allclose(torch.softmax(labels / 2.5, 1), targets(surrogate).reshape(labels.shape), atol=1e-6)
    else:
        assert torch.equal(labels, surrogate.split.labels)
    read = ImageFolder(str(out))
    assert [label for _, label in read] == surrogate.split.labels.tolist()
    assert torch.equal(tensors(image for image, _ in read), views)
    check_companions(out, tmp_path / "0", surrogate)


def test_ddranking_refuses_classes_of_different_sizes(tmp_path: Path) -> None:
    uneven = SurrogateSet(made().images[:3], torch.tensor([0, 1, 1]), CLASSES[:2])
    with pytest.raises(ArtifactError, match="1 to 2 images a class"):
        exported(tmp_path, "ddranking", uneven)


# several sets, shards, memory


@pytest.mark.parametrize("format", ["imagefolder", "parquet", "webdataset"])
def test_several_sets_are_named_configs(tmp_path: Path, format: str) -> None:
    sets = {ipc: made(ipc=ipc, mode="per_image") if ipc == 3 else made(ipc=ipc) for ipc in (1, 3)}
    out = exported(tmp_path, format, *sets.values())
    assert [path.relative_to(out).as_posix() for path in out.rglob("README.md")] == ["README.md"]
    image, label = ("png", "cls") if format == "webdataset" else ("image", "label")
    for number, (ipc, surrogate) in enumerate(sets.items()):
        rows = loaded(tmp_path, str(out), f"ipc-{ipc}")
        rows = rows.select(np.argsort(rows[label][:], kind="stable"))  # image folders are read by name
        assert rows[label][:] == surrogate.labels.tolist()
        assert torch.equal(tensors(rows[image]), surrogate.images)
        check_companions(out / f"ipc-{ipc}", tmp_path / str(number), surrogate)
        if format == "imagefolder":
            assert not list(verify(out / f"ipc-{ipc}"))
            assert SurrogateSet.load(out / f"ipc-{ipc}").content_hash() == surrogate.content_hash()


def test_sets_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    pairs: dict[str, tuple[Any, SurrogateSet, SurrogateSet, type[Exception], str]] = {
        "same IPC": ("parquet", made(), made(), ArtifactError, "both have IPC 2"),
        "channels": ("parquet", made(), made(ipc=1, channels=1), ArtifactError, "channels .3 and 1."),
        "ddranking": ("ddranking", made(), made(ipc=1), ConfigError, "takes one set, not 2"),
        "classes": (
            "parquet", made(), SurrogateSet(made(ipc=1).images, torch.arange(6), (*CLASSES[:4], "猫", "2")),
            ArtifactError, "class 4 is '2' and '猫'",
        ),
    }  # fmt: skip
    for name, (format, first, second, kind, words) in pairs.items():
        (tmp_path / name).mkdir()
        with pytest.raises(kind, match=words):
            exported(tmp_path / name, format, first, second)
        assert not list((tmp_path / name / "out").iterdir())


def test_large_sets_go_into_several_files(tmp_path: Path) -> None:
    surrogate = made(ipc=4, mode="per_image")
    surrogate.save(tmp_path / "set")
    stored = StoredSet.open(tmp_path / "set")
    for name in ("rows", "tars"):
        (tmp_path / name).mkdir()
    write_parquet(stored, tmp_path / "rows", shard=2_000)
    write_webdataset(stored, tmp_path / "tars", shard=10)
    names = sorted(path.name for path in (tmp_path / "rows").iterdir())
    assert len(names) > 2
    assert names == [f"train-{i:05d}-of-{len(names):05d}.parquet" for i in range(len(names))]
    assert [p.name for p in sorted((tmp_path / "tars").iterdir())] == [f"train-{i:06d}.tar" for i in range(3)]
    for folder, image, soft in (("rows", "image", "soft_label"), ("tars", "png", "npy")):
        rows = loaded(tmp_path, str(tmp_path / folder))
        assert torch.equal(tensors(rows[image]), surrogate.images)
        assert torch.equal(torch.tensor(rows[soft][:]), targets(surrogate))


def test_images_are_not_held_in_memory(tmp_path: Path) -> None:
    made(ipc=80, size=64).save(tmp_path / "set")
    stored = StoredSet.open(tmp_path / "set")
    total = sum(path.stat().st_size for path in stored.paths)
    for write in (write_parquet, write_webdataset):
        tracemalloc.start()
        write(stored, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < total / 2  # parquet has a row group of 100 in memory


@each_case
def test_the_content_hash_needs_no_set_in_memory(tmp_path: Path, case: str) -> None:
    surrogate = CASES[case]()
    surrogate.save(tmp_path / "set")
    assert StoredSet.open(tmp_path / "set").content_hash() == surrogate.content_hash()


# what is refused


def test_two_classes_of_one_name_do_not_fit_into_parquet(tmp_path: Path) -> None:
    twins = SurrogateSet(made().images[:2], torch.arange(2), ("ant", "ant"))
    with pytest.raises(ArtifactError, match="two classes called 'ant'"):
        exported(tmp_path, "parquet", twins)


def test_a_changed_set_is_not_exported(tmp_path: Path) -> None:
    made().save(tmp_path / "set")
    path = next((tmp_path / "set" / "train").glob("*/00000.png"))
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(ArtifactError, match=r"was changed\. `gendistill verify`"):
        StoredSet.open(tmp_path / "set")


def test_nothing_is_pickled_but_plain_tensors(tmp_path: Path) -> None:
    out = exported(tmp_path, "webdataset", made(mode="per_image"))
    with tarfile.open(out / "train-000000.tar") as tar:
        npy = tar.extractfile("00000000.npy")
        assert npy is not None
        assert np.load(io.BytesIO(npy.read()), allow_pickle=False).shape == (len(CLASSES),)


# from Python


def test_sets_in_memory_and_in_folders_are_exported_together(tmp_path: Path) -> None:
    made(1).save(tmp_path / "one")
    target = gendistill.export([tmp_path / "one", made(2)], tmp_path / "out" / "sets")
    assert gendistill.verify(target / "ipc-1") == gendistill.verify(str(target / "ipc-2")) == []
    assert torch.equal(SurrogateSet.load(target / "ipc-2").images, made(2).images)
    assert [path.name for path in target.parent.iterdir()] == ["sets"]
    with pytest.raises(ArtifactError, match="sets is not empty"):
        gendistill.export(made(1), target)


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes one set"):
        gendistill.export([made(1), made(2)], tmp_path / "out" / "sets", "ddranking")
    assert not list((tmp_path / "out").iterdir())


def test_what_is_no_export_is_not_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ArtifactError, match="is not an export"):
        gendistill.push_to_hub(tmp_path, "me/mine")
    with pytest.raises(ConfigError, match="expected a dataset id"):
        gendistill.push_to_hub(tmp_path, "mine")


def test_paths_of_this_computer_are_not_exported(tmp_path: Path) -> None:
    """But for their last part; what no path is stays as it is."""
    home = "/home/someone/secret/cats"
    command = f"gendistill distill --data.name {home} --surrogate '[{home}/a,~/b]' --teacher={home} --pretrained o/n"
    facts = {"name": home, "options": {"name": home, "licence": "cc/by"}}
    made = make(classes=("/etc", "a/b"), command=command, data=facts, teacher_data=[facts], licence="9/10, 3 / 4")
    made.save(tmp_path / "set")
    add_evidence(tmp_path / "set", evaluation={"protocol": "p", "data": home, "command": command, "rows": []})
    assert home in (tmp_path / "set" / "manifest.json").read_text()
    export(tmp_path / "set", tmp_path / "out", "webdataset")
    for path in ("manifest.json", "evidence.json", "export.json", "README.md"):
        text = (tmp_path / "out" / path).read_text()
        assert "someone" not in text, path
        assert str(tmp_path) not in text, path
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["classes"] == ["/etc", "a/b"]
    assert manifest["data"] == {"name": "cats", "options": {"name": "cats", "licence": "cc/by"}}
    assert manifest["licence"] == "9/10, 3 / 4"
    assert manifest["command"].endswith("--data.name cats --surrogate '[a,b]' --teacher=cats --pretrained o/n")


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ('["cat /dog","AC/DC"]', '["cat /dog","AC/DC"]'),
        ('{"cat /dog": 3, "place": "/home/me/x"}', '{"cat /dog": 3, "place": "x"}'),
        ("[/home/me/a, /home/me/b]", "[a, b]"),
        ("cat /dog", "cat /dog"),
        ("/home/me/my sets/x", "x"),
        ("own:/home/me/x", "own:x"),
        ("--data.name=~/x", "--data.name=x"),
    ],
)
def test_of_the_words_of_a_command_paths_alone_are_shortened(word: str, left: str) -> None:
    command = shlex.join(["gendistill", "distill", word])
    assert without_local_paths({"command": command}) == {"command": shlex.join(["gendistill", "distill", left])}


def test_an_older_export_with_paths_is_not_pushed(tmp_path: Path) -> None:
    make().save(tmp_path / "set")
    export(tmp_path / "set", tmp_path / "out")
    edit(tmp_path / "out" / "manifest.json", command="gendistill run --output_dir /home/me/x")
    with pytest.raises(ArtifactError, match="names folders of this computer"):
        push(tmp_path / "out", "owner/name")


def test_every_sample_of_a_tar_file_has_every_column(tmp_path: Path) -> None:
    """The webdataset reader of datasets takes the columns from the first samples."""
    images = make(ipc=4)
    probabilities = torch.full((12, 3), 1 / 3).half()
    soft = SoftLabels("per_image", 3, 1.0, Views(seed=0, batch_size=2), values=probabilities)
    SurrogateSet(images.images, images.labels, images.classes, {}, 1, soft).save(tmp_path / "set")
    export(tmp_path / "set", tmp_path / "out", "webdataset")
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        names = [name.split(".") for name in tar.getnames()]
    assert names == [[f"{i:08d}", column] for i in range(12) for column in ("png", "cls", "npy")]
