"""Sets in every format of images: what is in memory is what is stored, and what was changed is refused."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import gendistill as gd
from gendistill.errors import ArtifactError, ConfigError
from gendistill.evaluation.inputs import facts, pools
from gendistill.evaluation.summary import row_label
from gendistill.surrogate.image_files import encode, file_sizes
from gendistill.surrogate.image_formats import FORMATS, PAGE, Coding, is_whole
from gendistill.surrogate.manifest import read_manifest, verify
from gendistill.surrogate.set import SurrogateSet, SurrogateWriter, files_of, link_prefix
from tests.helpers import edit, files
from tests.surrogate.sets import make

CHOICES: dict[str, Any] = {
    "png": "png",
    "webp_lossless": "webp_lossless",
    "webp": gd.Webp(quality=60),
    "jpeg": gd.Jpeg(quality=60),
    "avif": gd.Avif(quality=60),
}
LOSSY = ("webp", "jpeg", "avif")
each = pytest.mark.parametrize("name", CHOICES)
each_other = pytest.mark.parametrize("name", [name for name in CHOICES if name != "png"])


def smooth(count: int, channels: int = 3, size: int = 32) -> Tensor:
    """Images that lossy formats come close to."""
    rng = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, channels, 4, 4, generator=rng)
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (255 * fine).round().to(torch.uint8)


def stored(name: str, folder: Path, original: SurrogateSet | None = None) -> SurrogateSet:
    """The set in this format, saved to ``folder``."""
    coded = (original or make(ipc=3)).stored_as(CHOICES[name])
    coded.save(folder)
    return coded


@each
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 20), channels=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_what_is_in_memory_is_what_is_stored(
    name: str, size: int, channels: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (4, channels, size, size), generator=rng, dtype=torch.uint8)
    original = SurrogateSet(images, torch.tensor([1, 0, 0, 1]), ("ant", "bee"))  # not in the order of the files
    folder = tmp_path_factory.mktemp("set") / "set"
    coded = stored(name, folder, original)
    found = SurrogateSet.load(folder)
    order = torch.argsort(coded.labels, stable=True)
    assert torch.equal(found.images, coded.images[order])
    assert found.coding == coded.coding == Coding.of(CHOICES[name])
    assert not verify(folder)
    if name not in LOSSY:
        assert torch.equal(coded.images, images)
    found.save(folder.parent / "again")
    assert files(folder, "**/*") == files(folder.parent / "again", "**/*")


@each
def test_the_manifest_names_the_coding_and_counts_its_files(name: str, tmp_path: Path) -> None:
    coded = stored(name, tmp_path / "set")
    manifest, chosen = read_manifest(tmp_path / "set"), FORMATS[name]
    images = files(tmp_path / "set", f"train/**/*{chosen.suffix}")
    assert len(images) == 9
    assert manifest["bytes"]["images"] == sum(map(len, images.values())) == coded.image_bytes
    assert {path.rpartition(".")[2] for path in files_of(coded)} == {chosen.suffix[1:]}
    assert list(images) == sorted(files_of(coded))
    if name == "png":
        assert "image_format" not in manifest  # older versions read it
        return
    record = manifest["image_format"]
    assert record["format"] == name
    assert record.get("quality") == getattr(CHOICES[name], "quality", None)
    assert set(record["coder"]) == {"Pillow", chosen.library}


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_lossy_format_is_close_and_smaller_and_better_with_quality(name: str, channels: int) -> None:
    images = smooth(6, channels)
    original = SurrogateSet(images, torch.arange(6) % 2, ("ant", "bee"))
    kind = type(CHOICES[name])
    errors, sizes = [], []
    for quality in (10, 95):
        coded = original.stored_as(kind(quality=quality))
        errors.append((coded.images.float() - images.float()).abs().mean().item())
        sizes.append(coded.image_bytes)
    assert errors[1] < 3
    assert errors[1] < errors[0]
    assert sizes[0] < sizes[1] < original.image_bytes


@each
def test_files_go_with_their_images_and_are_not_coded_twice(name: str) -> None:
    coded = make(ipc=3).stored_as(CHOICES[name])
    assert coded.stored_as(CHOICES[name]) is coded
    some = coded.prefix(2).take(torch.tensor([3, 0]))
    assert some.coding == coded.coding
    assert torch.equal(some.images, coded.images[[4, 0]])
    assert coded.stored_as("png").coding == Coding()
    assert torch.equal(coded.stored_as("png").images, coded.images)


@each_other
def test_files_of_other_images_count_for_nothing(name: str, tmp_path: Path) -> None:
    changed = replace(coded := make().stored_as(CHOICES[name]), images=255 - make().images)
    assert coded.coding != Coding()
    assert changed.coding == Coding()
    changed.save(tmp_path / "set")
    assert torch.equal(SurrogateSet.load(tmp_path / "set").images, changed.images)


@each_other
@pytest.mark.parametrize("change", ["cut", "byte", "other", "longer"])
def test_a_changed_file_is_refused_by_load_and_by_verify(name: str, change: str, tmp_path: Path) -> None:
    coded = stored(name, tmp_path / "set")
    path = tmp_path / "set" / files_of(coded)[4]
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes({
        "cut": data[:-3], "byte": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "other": encode(smooth(1, size=8)[0], coded.coding), "longer": data + b"x",
    }[change])  # fmt: skip
    with pytest.raises(ArtifactError, match=rf"{path.name} was changed since the set was made"):
        SurrogateSet.load(tmp_path / "set")
    assert verify(tmp_path / "set") == [f"train/bee/{path.name} was changed"]


@each_other
def test_a_file_of_another_size_or_another_format_is_named(name: str, tmp_path: Path) -> None:
    from gendistill.surrogate.image_files import decode_files

    coding = Coding.of(CHOICES[name])
    with pytest.raises(ArtifactError, match="that file is 8x8; its manifest says 9x9"):
        decode_files([encode(smooth(1, size=8)[0], coding)], coding, 3, 9, ["that file"])
    with pytest.raises(ArtifactError, match="that file is damaged"):
        decode_files([encode(smooth(1, size=8)[0])], coding, 3, 8, ["that file"])


@each_other
def test_the_images_must_be_those_that_the_manifest_names(name: str, tmp_path: Path) -> None:
    coded = stored(name, tmp_path / "set")
    path = tmp_path / "set" / files_of(coded)[0]
    path.rename(path.with_suffix(".tmp"))
    with pytest.raises(ArtifactError, match=rf"1 image\(s\) missing \(ant/{path.name}\)"):
        SurrogateSet.load(tmp_path / "set")
    path.with_suffix(".tmp").rename(path)
    path.with_suffix(".png").write_bytes(encode(coded.images[0]))
    with pytest.raises(ArtifactError, match=r"1 image\(s\) too many \(ant/00000.png\)"):
        SurrogateSet.load(tmp_path / "set")


RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"format": "gif", "coder": {}}, "expected a format of png, webp_lossless"),
    "no quality": ({"format": "jpeg", "coder": {}}, "expected jpeg with a quality from 1 to 100"),
    "too good": ({"format": "webp", "coder": {}, "quality": 101}, "expected webp with a quality from 1 to 100"),
    "needless": ({"format": "webp_lossless", "coder": {}, "quality": 9}, "expected webp_lossless with no quality"),
    "no coder": ({"format": "webp", "quality": 9}, "image_format"),
    "text": ({"format": "webp", "quality": "9", "coder": {}}, "image_format"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_manifest_with_another_record_is_damaged(case: str, tmp_path: Path) -> None:
    record, text = RECORDS[case]
    make().save(tmp_path / "set")
    edit(tmp_path / "set" / "manifest.json", image_format=record)
    with pytest.raises(ArtifactError, match=text):
        SurrogateSet.load(tmp_path / "set")


# what cannot be written


def test_a_format_that_pillow_lacks_is_one_error_before_the_work(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    Image.init()
    monkeypatch.delitem(Image.SAVE, "AVIF")
    with pytest.raises(ConfigError, match=r"image_format is 'avif', but Pillow .* was built without AVIF; expected"):
        make().stored_as(gd.Avif())
    out = tmp_path / "set"
    command = ["distill", "--method", "random", "--ipc", "1", "--image_format", "avif", "--output_dir", str(out)]
    from gendistill.cli import main

    assert main(command) == 2
    assert "Pillow" in capsys.readouterr().err
    assert not out.exists()


def test_a_side_that_a_format_cannot_hold_is_refused() -> None:
    for name, chosen in FORMATS.items():
        if name != "png":
            with pytest.raises(ConfigError, match=rf"holds at most {chosen.longest} pixels a side; the images have"):
                Coding.of(CHOICES[name], chosen.longest + 1)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--image_format", "gif"], "distill.image_format is 'gif'"),
        (["--image_format", "webp", "--image_quality", "0"], "expected a whole number from 1 to 100"),
        (["--image_quality", "50"], "expected 90: it is used only with image_format webp or image_format jpeg or"),
        (["--image_format", "webp_lossless", "--image_quality", "50"], "distill.image_quality is 50; expected 90"),
    ],
)
def test_a_wrong_option_is_refused(flags: list[str], text: str) -> None:
    from gendistill.cli import parse

    with pytest.raises(ConfigError) as refused:
        parse("distill", ["--method", "random", *flags, "--output_dir", "x"])
    assert text in str(refused.value)


# interrupted writing


@each_other
def test_a_part_of_a_file_is_not_whole(name: str) -> None:
    coding = Coding.of(CHOICES[name])
    rng = torch.Generator().manual_seed(0)
    data = encode(torch.randint(0, 256, (3, 192, 192), generator=rng, dtype=torch.uint8), coding)
    assert len(data) > 2 * PAGE
    assert is_whole(data, coding)
    for end in (0, 1, 20, PAGE, len(data) // 2, len(data) - 2):
        assert not is_whole(data[:end], coding), end
    assert not is_whole(data[:PAGE] + bytes(PAGE) + data[2 * PAGE :], coding)
    assert not is_whole(encode(smooth(1)[0]), coding)


@each
def test_the_writer_goes_on_where_it_was_interrupted(name: str, tmp_path: Path) -> None:
    coding, images, classes = Coding.of(CHOICES[name]), smooth(6), ("ant", "bee")
    with SurrogateWriter(tmp_path / "part", classes, coding) as writer:
        writer.put(0, 0, images[0])
        writer.put(1, 2, images[5])
    writer.path(0, 1).write_bytes(encode(images[1], coding)[:-9])
    with SurrogateWriter(tmp_path / "part", classes, coding) as writer:
        missing = [(label, i) for label in range(2) for i in range(3) if not writer.has(label, i)]
        assert missing == [(0, 1), (0, 2), (1, 0), (1, 1)]
        for label, i in missing:
            writer.put(label, i, images[3 * label + i])
    whole = SurrogateSet(images, torch.arange(2).repeat_interleave(3), classes).stored_as(CHOICES[name])
    whole.save(tmp_path / "whole")
    suffix = f"train/**/*{coding.suffix}"
    assert files(tmp_path / "part", suffix) == files(tmp_path / "whole", suffix)
    link_prefix(tmp_path / "part", tmp_path / "linked", classes, 2, coding.suffix)
    assert len(files(tmp_path / "linked", suffix)) == 4


# what is evaluated


@each
def test_rows_count_the_bytes_that_are_stored(name: str, tmp_path: Path) -> None:
    coded = stored(name, tmp_path / "set", make(ipc=4))
    row = facts([coded], labels=False)
    assert row["bytes"]["images"] == read_manifest(tmp_path / "set")["bytes"]["images"]
    named = {"png": "dm", "webp_lossless": "dm (webp_lossless)"}.get(name, f"dm ({name} at quality 60)")
    assert row_label({"method": "dm", **row}) == named
    assert sum(file_sizes(make(ipc=4).images, Coding.of(CHOICES[name]))) == coded.image_bytes


def test_sets_of_different_formats_are_not_pooled() -> None:
    seeds = [make(method="m", seed=0), replace(make(method="m", seed=1), images=255 - make().images)]
    jpeg, webp = [[one.stored_as(CHOICES[name]) for one in seeds] for name in ("jpeg", "webp")]
    assert [len(pool) for pool in pools([*jpeg, *webp], labels=False)] == [2, 2]
    assert [len(pool) for pool in pools([jpeg[0], webp[1], seeds[1].stored_as(gd.Webp(quality=61))], labels=False)] == [
        1, 1, 1
    ]  # fmt: skip


# exports


@pytest.mark.parametrize("format", ["imagefolder", "parquet", "webdataset", "ddranking"])
@each_other
def test_exports_hold_the_files_as_they_are_stored(name: str, format: Any, tmp_path: Path) -> None:
    from datasets import Image as ImageColumn
    from datasets import load_dataset

    coded = stored(name, tmp_path / "set", make(ipc=2))
    if (name, format) == ("avif", "webdataset"):
        with pytest.raises(ArtifactError, match="holds AVIF images, which readers of tar files do not decode"):
            gd.export(tmp_path / "set", tmp_path / "out", format)
        return
    out = gd.export(tmp_path / "set", tmp_path / "out", format)
    suffix = coded.coding.suffix
    if format == "imagefolder":
        assert files(out, f"train/**/*{suffix}") == files(tmp_path / "set", f"train/**/*{suffix}")
        assert SurrogateSet.load(out).content_hash() == coded.content_hash()
        assert not verify(out)
    elif format == "ddranking":  # whose reader does not know every format
        found = [Image.open(path) for path in sorted(out.glob("?????/*.png"))]
        assert torch.equal(tensors(found), coded.images)
    else:
        read = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
        column = "image" if format == "parquet" else suffix[1:]
        assert torch.equal(tensors(read[column]), coded.images)
        raw = read.cast_column(column, ImageColumn(decode=False))[column]
        assert [row["bytes"] for row in raw] == [(tmp_path / "set" / path).read_bytes() for path in files_of(coded)]


def tensors(images: Any) -> Tensor:
    import numpy as np

    return torch.stack([torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0) for image in images])


@each
@pytest.mark.parametrize("start", ["png", "jpeg"])
def test_an_export_in_another_format_is_a_set_of_its_own(name: str, start: str, tmp_path: Path) -> None:
    before = stored(start, tmp_path / "set", make(ipc=2, method="m", seed=3))
    out = gd.export(tmp_path / "set", tmp_path / "out", image_format=CHOICES[name])
    found = SurrogateSet.load(out)
    assert not verify(out)
    assert found.content_hash() == before.stored_as(CHOICES[name]).content_hash()
    assert found.coding == Coding.of(CHOICES[name])
    assert found.meta.get("recoded_from") == (None if name == start else str(before.coding))
    assert sorted(path.name for path in out.iterdir()) == [
        "CHECKSUMS", "README.md", "export.json", "manifest.json", "train"
    ]  # fmt: skip


def test_an_export_as_tar_files_is_judged_by_the_format_that_it_writes(tmp_path: Path) -> None:
    stored("avif", tmp_path / "set", make(ipc=2))
    stored("png", tmp_path / "other", make(ipc=2))
    out = gd.export(tmp_path / "set", tmp_path / "out", "webdataset", image_format="png")
    assert list(out.glob("*.tar"))
    with pytest.raises(ArtifactError, match="image_format is 'avif', which readers of tar files do not decode"):
        gd.export(tmp_path / "other", tmp_path / "none", "webdataset", image_format=gd.Avif(quality=50))
    with pytest.raises(ConfigError, match="image_format is 'webp'; expected None with format ddranking"):
        gd.export(tmp_path / "set", tmp_path / "none", "ddranking", image_format=gd.Webp())


def test_an_export_does_not_claim_what_was_measured_of_other_pixels(tmp_path: Path) -> None:
    from gendistill.surrogate.card.card import add_evidence

    make().save(tmp_path / "set")
    add_evidence(tmp_path / "set", evaluation={"protocol": "p", "data": "d", "command": "c", "rows": []})
    lossy = gd.export(tmp_path / "set", tmp_path / "lossy", image_format=gd.Webp())
    exact = gd.export(tmp_path / "set", tmp_path / "exact", image_format="webp_lossless")
    assert not (lossy / "evidence.json").exists()
    assert (exact / "evidence.json").exists()
    (tmp_path / "summary.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(ConfigError, match=r"evaluation is .*; expected None with a lossy image_format"):
        gd.export(tmp_path / "set", tmp_path / "no", image_format=gd.Webp(), evaluation=tmp_path / "summary.json")
    with pytest.raises(ConfigError, match=r"image_format is .*; expected None with format ddranking"):
        gd.export(tmp_path / "set", tmp_path / "no", "ddranking", image_format="webp_lossless")
    assert not (tmp_path / "no").exists()


def test_pillow_reads_jpeg_files_of_a_set_without_loss_of_chroma(tmp_path: Path) -> None:
    """4:4:4, in which a single red pixel keeps its place better than in 4:2:0."""
    stored("jpeg", tmp_path / "set", SurrogateSet(smooth(2), torch.tensor([0, 1]), ("ant", "bee")))
    data = next((tmp_path / "set" / "train").rglob("*.jpg")).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        assert [(h, v) for _, h, v, _ in image.layer] == [(1, 1)] * 3
