"""The card: its code reads the set, its words are those of manifest and evidence, and no name breaks it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import gendistill as gd
from gendistill.config import LabelConfig, Online, PerImage, PerView, TeacherConfig
from gendistill.data.crops import Views
from gendistill.data.dataset import RealData
from gendistill.data.pixels import to_float
from gendistill.distillers import distill
from gendistill.errors import ArtifactError
from gendistill.networks.soft_labelling import label_set, soft_batches
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_training import train_teacher
from gendistill.surrogate.card.card import add_evidence, card
from gendistill.surrogate.card.entry import EVIDENCE, CardEntry, read_entry, read_evidence
from gendistill.surrogate.card.facts import line, terms
from gendistill.surrogate.export import write_export
from gendistill.surrogate.manifest import read_manifest, verify
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.soft_labels import SoftLabels, packed
from gendistill.surrogate.stored import StoredSet
from tests.surrogate.sets import NASTY, make

DIGITS = tuple(map(str, range(10)))
SPLITS = ("train", "test", "val", "dev")  # by which datasets finds splits where it is told nothing
UNSORTED = ("zebra", "ant", "10", "2", "a/b", "größe")
SETS: dict[str, SurrogateSet] = {
    "grey digits": make(DIGITS, channels=1),
    "RGB": make(),
    "unsorted": make(UNSORTED),
    "naturally sorted": make(tuple(map(str, range(12))), ipc=11, channels=1),
    "nasty": make(NASTY),
    "one class": make(("only",)),
    "factor 2": make(factor=2),
    "factors 1 and 2": make(factor=(1, 2)),
    "factor 2, grey, unsorted": make(UNSORTED, channels=1, factor=2),
    "names of splits": make(("train", "test")),
    "names of splits alone": make(SPLITS),
    "a name of a split": make(("test",)),
}
every_set = pytest.mark.parametrize("original", SETS.values(), ids=SETS.keys())


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[SurrogateSet], Path]:
    def save(original: SurrogateSet) -> Path:
        original.save(tmp_path / "set")
        return tmp_path / "set"

    return save


def readme(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def said(folder: Path) -> str:
    """The card in one line."""
    return " ".join(readme(folder).split())


def front(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("\n---\n", maxsplit=1)[0].removeprefix("---\n"))


def scripts(folder: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", readme(folder), flags=re.MULTILINE | re.DOTALL)


def run(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that script ``number`` of the card defines when it runs in the card's folder."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(scripts(folder)[number], names)
    return names


def check_read(found: dict[str, Any], original: SurrogateSet) -> None:
    """``train`` and ``classes`` of a script are the set: names in order, pixels in [-1, 1] by label."""
    split = original.split
    assert list(found["classes"]) == list(original.classes)
    pairs = [(row["image"], row["label"]) if isinstance(row, dict) else row for row in found["train"]]
    assert pairs[0][0].shape == split.images.shape[1:]
    assert all(image.dtype == torch.float32 for image, _ in pairs)
    images, labels = torch.stack([image for image, _ in pairs]), torch.tensor([int(label) for _, label in pairs])
    for label in range(len(original.classes)):
        wanted = to_float(split.images[split.labels == label])
        torch.testing.assert_close(images[labels == label], wanted, atol=1e-6, rtol=0)


# code


@pytest.mark.slow
@every_set
@pytest.mark.parametrize("number", [0, 1, 2], ids=["datasets", "torchvision", "timm"])
def test_the_code_reads_images_and_labels_as_they_are(original, number, saved, monkeypatch) -> None:
    folder = saved(original)
    assert len(scripts(folder)) == 3
    check_read(run(folder, number, monkeypatch), original)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_format", ["webp_lossless", gd.Webp(), gd.Jpeg(), gd.Avif()], ids=str)
def test_the_code_reads_every_format_of_images(image_format, channels, saved, monkeypatch) -> None:
    original = make(UNSORTED, channels=channels).stored_as(image_format)
    folder = saved(original)
    assert len(scripts(folder)) == (2 if original.coding.name == "avif" else 3)  # datasets finds no .avif in folders
    for number in range(len(scripts(folder))):
        check_read(run(folder, number, monkeypatch), original)
    assert f"| image format | {original.coding}, by Pillow " in said(folder)


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
@pytest.mark.parametrize("image_format", ["webp_lossless", gd.Jpeg()], ids=str)
def test_the_code_reads_exports_of_every_format_of_images(image_format, format, tmp_path, monkeypatch) -> None:
    original = make(("ant", "bee", "cow"), channels=1).stored_as(image_format)
    out = exported(tmp_path, [original], format)
    check_read(run(out, 0, monkeypatch), original)


def test_the_code_has_no_mapping_where_none_is_needed(saved) -> None:
    assert not any("manifest" in script or "Decoded" in script for script in scripts(saved(make(DIGITS, channels=1))))


def test_only_the_reader_that_sorts_otherwise_gets_a_mapping(saved) -> None:
    names, folders, natural = scripts(saved(make(tuple(map(str, range(12))))))
    assert "manifest" not in names + natural  # the front matter tells datasets
    assert "manifest" in folders


@pytest.mark.parametrize("factor", [1, 2, (1, 2)])
@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("classes", [("ant", "bee", "cow"), UNSORTED], ids=["sorted", "unsorted"])
def test_the_code_reads_soft_labels_per_image(classes, top_k, factor, saved, monkeypatch) -> None:
    plain = make(classes, factor=factor)
    rng = torch.Generator().manual_seed(1)
    made = torch.rand(len(plain.split), len(classes), generator=rng).softmax(1)
    soft = SoftLabels("per_image", len(classes), 4.0, Views(seed=0, batch_size=8), {}, top_k, 1, *packed(made, top_k))
    original = SurrogateSet(plain.images, plain.labels, plain.classes, {}, factor, soft)
    found = run(saved(original), 3, monkeypatch)
    torch.testing.assert_close(found["images"], to_float(original.split.images), atol=1e-6, rtol=0)
    torch.testing.assert_close(found["probabilities"], soft.probabilities(torch.arange(len(made))))


@pytest.fixture(scope="module")
def teacher(digits: RealData) -> Teacher:
    return train_teacher(digits, TeacherConfig(steps=2, width=8))


@pytest.fixture(scope="module")
def labelled(digits: RealData, teacher: Teacher) -> Callable[[str], SurrogateSet]:
    chosen = distill(digits, "random", 1)

    def label(mode: str) -> SurrogateSet:
        modes = {"per_image": PerImage(), "per_view": PerView(steps=3, batch_size=4), "online": Online(batch_size=4)}
        return label_set(chosen, teacher, LabelConfig(mode=modes[mode], min_crop=0.6))

    return label


@pytest.mark.parametrize("format", ["imagefolder", "parquet", "webdataset"])
@pytest.mark.parametrize("mode", ["per_view", "online"])
def test_the_code_gives_the_batches_of_soft_labels(
    mode: str, format: Any, labelled, teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = labelled(mode)
    original.save(tmp_path / "set")
    (tmp_path / "out").mkdir()
    write_export([StoredSet.open(tmp_path / "set")], tmp_path / "out", format)
    teacher.save_pretrained(tmp_path / "out" / "teacher")
    found = run(tmp_path / "out", -1, monkeypatch)
    images, probabilities = soft_batches(original, teacher.network)(found["step"])
    torch.testing.assert_close(found["images"], images)
    torch.testing.assert_close(found["probabilities"], probabilities)
    assert found["step"] == (2 if mode == "per_view" else 99)


# other formats, several sets


def exported(tmp_path: Path, sets: Iterable[SurrogateSet], format: Any) -> Path:
    stored = []
    for original in sets:
        original.save(tmp_path / f"{original.ipc}")
        stored.append(StoredSet.open(tmp_path / f"{original.ipc}"))
    (tmp_path / "out").mkdir()
    write_export(stored, tmp_path / "out", format)
    return tmp_path / "out"


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("format", ["imagefolder", "parquet", "webdataset"])
@pytest.mark.parametrize("classes", [UNSORTED, SPLITS])
def test_the_code_reads_the_largest_of_several_sets(format, factor, classes, tmp_path, monkeypatch) -> None:
    sets = [make(classes, ipc=ipc, channels=1, factor=factor) for ipc in (1, 3, 2)]
    folder = exported(tmp_path, sets, format)
    assert [c["config_name"] for c in front(readme(folder))["configs"] if c.get("default")] == ["ipc-3"]
    for number in range(len(scripts(folder))):
        check_read(run(folder, number, monkeypatch), sets[1])


@pytest.mark.parametrize("format", ["imagefolder", "parquet", "webdataset"])
def test_datasets_reads_each_of_several_sets_by_name(format: str, tmp_path: Path) -> None:
    import datasets

    sets = [make(UNSORTED, ipc=ipc) for ipc in (1, 2)]
    folder = exported(tmp_path, sets, format)
    for original in sets:
        read = datasets.load_dataset(str(folder), f"ipc-{original.ipc}", split="train")
        image, label = ("png", "cls") if format == "webdataset" else ("image", "label")
        found = sorted((row[label], np.asarray(row[image]).tobytes()) for row in read)
        wanted = zip(original.labels.tolist(), original.images, strict=True)
        assert found == sorted((c, np.ascontiguousarray(i.permute(1, 2, 0)).tobytes()) for c, i in wanted)


@pytest.mark.parametrize("format", ["imagefolder", "parquet", "webdataset"])
@pytest.mark.parametrize("sizes", [(1,), (1, 2)])
def test_the_code_of_another_export_in_a_folder_of_the_same_name_reads_that_one(
    sizes: tuple[int, ...], format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [make(("ant", "bee"), ipc=ipc) for ipc in sizes]
    others = [replace(one, images=255 - one.images) for one in sets]
    for place, originals in (("a", sets), ("b", others)):
        (tmp_path / place).mkdir()
        check_read(run(exported(tmp_path / place, originals, format), 0, monkeypatch), originals[-1])


def test_sets_that_are_read_differently_have_code_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [make(ipc=1, factor=2), make(ipc=3)]
    folder = exported(tmp_path, sets, "imagefolder")
    assert len(scripts(folder)) == 6
    for number in range(6):
        check_read(run(folder, number, monkeypatch), sets[1 - number // 3])


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_the_code_reads_soft_labels_of_other_formats(format, factor, tmp_path, monkeypatch) -> None:
    plain = make(UNSORTED, factor=factor)
    made = torch.rand(len(plain.split), 6, generator=torch.Generator().manual_seed(1)).softmax(1)
    soft = SoftLabels("per_image", 6, 4.0, Views(seed=0, batch_size=8), {}, None, 1, *packed(made))
    original = SurrogateSet(plain.images, plain.labels, plain.classes, {}, factor, soft)
    found = run(exported(tmp_path, [original], format), -1, monkeypatch)
    torch.testing.assert_close(found["images"], to_float(original.split.images), atol=1e-6, rtol=0)
    torch.testing.assert_close(found["probabilities"], soft.probabilities(torch.arange(len(made))))


def test_the_code_reads_the_tensors_for_ddranking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = make(factor=2)
    folder = exported(tmp_path, [original], "ddranking")
    found = run(folder, 0, monkeypatch)
    assert found["images"].shape == (24, 3, 8, 8)
    assert found["labels"].tolist() == original.split.labels.tolist()
    assert "configs" not in front(readme(folder))


# front matter


@every_set
def test_the_hub_takes_the_front_matter(original: SurrogateSet, saved) -> None:
    from huggingface_hub import DatasetCard

    folder = saved(original)
    found = DatasetCard.load(folder / "README.md")
    assert found.data.license == "unknown"
    assert found.data.task_categories == ["image-classification"]
    assert found.data.size_categories == ["n<1K"]
    assert found.data.configs[0]["config_name"] == f"ipc-{original.ipc}"
    assert yaml.safe_load(str(found.data)) == front(readme(folder))


@pytest.mark.parametrize(
    ("images", "category"), [(999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (3_000_000, "1M<n<10M")]
)
def test_the_size_category_is_of_the_stored_images(images: int, category: str, saved) -> None:
    manifest = read_manifest(saved(make())) | {"stored_images": images}
    assert front(card([CardEntry("a", "", manifest)], format="imagefolder"))["size_categories"] == [category]


# licences


@pytest.mark.parametrize(
    ("generator", "data", "front_matter"),
    [
        ("as the data", None, {"license": "unknown"}),
        ("as the data", "cc-by-4.0", {"license": "cc-by-4.0"}),
        ("cc-by-nc-4.0", None, {"license": "cc-by-nc-4.0"}),
        ("cc-by-nc-4.0", "mit", {"license": ["cc-by-nc-4.0", "mit"]}),
        ("CC-BY-NC-4.0", "unknown", {"license": "cc-by-nc-4.0"}),
        ("apache-2.0", None, {"license": "unknown"}),
        ("apache-2.0", "apache-2.0", {"license": "apache-2.0"}),
        ("apache-2.0", "My Terms: v1", {"license": "other", "license_name": "apache-2.0-and-my-terms-v1"}),
        ("unknown", "cc-by-4.0", {"license": "unknown"}),
        (None, None, {"license": "unknown"}),
        ("as the data", "x\n---\n# y", {"license": "other", "license_name": "x-y"}),
    ],
)
def test_the_licence_is_that_of_generator_and_data(generator: Any, data: Any, front_matter: dict[str, Any]) -> None:
    assert terms([{"licence": generator, "data": {"licence": data}}]).front_matter == front_matter


def test_a_repository_of_sets_is_under_all_their_licences() -> None:
    sets = [{"licence": "cc-by-nc-4.0"}, {"licence": "as the data", "data": {"licence": "mit"}}]
    assert terms(sets).front_matter == {"license": ["cc-by-nc-4.0", "mit"]}


def test_licences_of_generator_and_data_are_told_apart(saved) -> None:
    text = said(saved(make(licence="cc-by-nc-4.0", data={"name": "insects", "licence": "mit"})))
    assert "| the generator and its base model | `cc-by-nc-4.0` | | the data | `mit` |" in text


# words


FULL: dict[str, Any] = {
    "method": "generative", "stage": "refined", "stages": ["finetune", "sample", "select", "barycenter"], "seed": 3,
    "data": {
        "name": "insects", "fingerprint": "da7a", "licence": "mit",
        "counts": {"train": [30, 31, 32], "validation": [3, 3, 3], "test": [9, 9, 9]},
    },
    "licence": "cc-by-nc-4.0", "generator_hash": "9e9e", "teacher_hash": "7eac", "seconds": {"sample": 12.25},
    "command": "gendistill refine --surrogate pool", "versions": {"torch": "2.15.0"},
}  # fmt: skip
ROW = {"stage": None, "labels": "hard", "augment": True, "network": "convnet", "space": None, "set": None}
EVALUATION = {
    "protocol": "gendistill", "data": "insects", "command": "gendistill evaluate --surrogate set",
    "rows": [
        {**ROW, "method": "full", "ipc": None, "accuracy": [0.9] * 5, "mean": 0.9, "std": 0.0, "ci95_vs_random": None,
         "verdict": ""},
        {**ROW, "method": "generative", "stage": "refined", "ipc": 2, "accuracy": [0.7] * 5, "mean": 0.7123,
         "std": 0.0149, "ci95_vs_random": [-0.012, 0.034], "verdict": "not better than random", "set": "abc"},
        {**ROW, "method": "random", "ipc": 2, "accuracy": [0.5] * 5, "mean": 0.5, "std": 0.1, "ci95_vs_random": None,
         "verdict": ""},
    ],
}  # fmt: skip
COPIES = {
    "space": "teacher features", "images": 6, "exact": {"train": 1, "validation": 0, "test": 2}, "near": 3,
    "median": 1.25, "held_out_median": 1.5,
}  # fmt: skip


def test_the_card_says_what_the_manifest_says(saved) -> None:
    folder = saved(make(**FULL))
    text, size = said(folder), sum(p.stat().st_size for p in folder.glob("train/*/*.png"))
    for fact in (
        "# insects at IPC 2", "2 for each of 3 classes", "8 x 8 px, RGB", "93 training images of `insects`",
        "93 training, 9 validation and 27 test", "sampled from a diffusion generator", "| 3 |", "`9e9e`", "`7eac`",
        "`da7a`", "sample 12.25 s", "torch 2.15.0", "gendistill refine --surrogate pool", f"| {size:,} | 0 | 0 |",
        "finetune → sample → select → barycenter", "`generative`",
    ):  # fmt: skip
        assert fact in text


@pytest.mark.parametrize("meta", [{}, {"data": {}}, {"data": {"name": "x"}}, {"method": "mine", "stage": None}, FULL])
def test_what_is_not_known_is_not_said(meta: dict[str, Any], saved) -> None:
    text = readme(saved(make(**meta)))
    assert not re.search(r"None|nan|null|undefined|\{\{|\{%", text)
    assert "\n\n\n" not in re.sub(r"```python.*?```", "code", text, flags=re.DOTALL)


def test_real_images_are_called_real(digits: RealData, saved) -> None:
    assert "The images are real training images" in said(saved(distill(digits, "kmeans", 1)))


def test_a_set_without_evidence_says_so_and_how_to_get_it(saved) -> None:
    text = said(saved(make(data={"name": "my insects"})))
    assert "Not evaluated yet" in text
    assert "gendistill evaluate --surrogate . --data.name 'my insects' --output_dir" in text


def test_the_card_shows_the_evaluation_as_a_table(saved) -> None:
    folder = saved(make(**FULL))
    add_evidence(folder, evaluation=EVALUATION)
    text = readme(folder)
    assert "| **`generative`, refined** | hard | 2 | 71.2 ± 1.5 | −1.2 to +3.4 | not better than random |" in text
    assert "| random real images | hard | 2 | 50.0 ± 10.0 |  |  |" in text
    assert text.index("random real images |") < text.index("all real images | hard | all | 90.0 ± 0.0")
    assert "Accuracy of `convnet` on the test images of `insects`, by the protocol `gendistill`: mean" in text
    assert "standard deviation of 5 trainings" in text
    assert "```bash\ngendistill evaluate --surrogate set\n```" in text
    assert "Not evaluated" not in text


def test_the_card_tells_of_copies_and_claims_no_privacy(saved) -> None:
    folder = saved(make(**FULL))
    add_evidence(folder, copies=COPIES)
    text = said(folder)
    assert "exact copies are: 1 of training images, 0 of validation images and 2 of test images" in text
    assert "distance between teacher features, 3 of 6 (50 %)" in text
    assert "closest training image is 1.25, that of held-out real images 1.5." in text
    assert "no claim of privacy" in text


def test_soft_labels_are_weighed_against_images(labelled, teacher, saved) -> None:
    folder = saved(labelled("per_image"))
    text, sizes = said(folder), read_manifest(folder)["bytes"]
    assert f"{sizes['labels']:,} bytes beside {sizes['images']:,} bytes of images" in text
    assert f"| {sizes['images']:,} | {sizes['labels']:,} | {sizes['labels'] / sizes['images']:.3g} |" in text
    assert f"right on {100 * teacher.meta['accuracy']['validation']:.1f} % of the validation images" in text
    assert "softmax of a teacher's logits divided by 4" in text


def test_online_labels_cost_nothing_but_their_teacher(labelled, teacher, saved) -> None:
    text = said(saved(labelled("online")))
    weights = sum(tensor.nbytes for tensor in teacher.network.state_dict().values())
    assert "They take 0 bytes beside" in text
    assert "| 0 | 0 |" in text
    assert f"but need the teacher of {weights:,} bytes." in text


# evidence


def test_evidence_gathers_part_by_part(saved) -> None:
    folder = saved(make())
    assert read_evidence(folder) == {}
    add_evidence(folder, copies=COPIES)
    add_evidence(folder, evaluation={**EVALUATION, "rows": []})
    add_evidence(folder, evaluation=EVALUATION)
    assert read_evidence(folder) == {"copies": COPIES, "evaluation": EVALUATION}
    assert list(verify(folder)) == []
    assert len(SurrogateSet.load(folder).labels) == 6


def test_evidence_that_cannot_be_written_changes_nothing(saved) -> None:
    folder = saved(make())
    add_evidence(folder, copies=COPIES)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    wrong: list[dict[str, Any]] = [
        {"rows": [], "data": {1}},
        {"rows": [{"ipc": 1}]},
        {"rows": [{"ipc": 1, "method": "random", "mean": "high"}]},
        {"rows": 3},
        {"protocol": "x"},
    ]
    for part in wrong:
        with pytest.raises((TypeError, ValueError, ArtifactError)):
            add_evidence(folder, evaluation=part)
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"copies": 3}', '{"copies": {}}', '{"evaluation": {"rows": [1]}}']
)
def test_damaged_evidence_is_named(text: str, saved) -> None:
    folder = saved(make())
    (folder / EVIDENCE).write_text(text)
    with pytest.raises(ArtifactError, match=r"evidence\.json.*Delete it"):
        read_evidence(folder)


def test_evidence_needs_a_set(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a surrogate set"):
        add_evidence(tmp_path, copies=COPIES)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_record_of_soft_labels_is_named(saved) -> None:
    folder = saved(make())
    (folder / "soft_labels.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"soft_labels\.json"):
        read_entry(folder, read_manifest(folder))


# hostile names

HOSTILE = (
    "a | b", "`tick`", "```\n# fence", "---\nlicense: mit", "*bold* [x](y)", "<script>", "{{ 1 }}", "{% raw %}", "\\",
    '"', "'", "$x$", "a\u202eb", "-", "# h", "&lt;", "a\r\n\r\n# b", "1. x", "~~~", "= = =",
)  # fmt: skip


def structure(text: str) -> tuple[list[str], list[str], list[str]]:
    """What a Markdown parser sees of a card: kinds of its blocks and spans, the text of each, and its fenced code."""
    markdown_it = pytest.importorskip("markdown_it")
    body = text.split("\n---\n", 1)[1]
    tokens = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).parse(body)
    kinds = [token.type for token in tokens]
    kinds += sorted({child.type for token in tokens for child in token.children or ()} - {"text", "text_special"})
    shown = ["".join(child.content for child in token.children or ()) for token in tokens if token.type == "inline"]
    return kinds, shown, [token.content for token in tokens if token.type == "fence"]


def hostile(text: str) -> dict[str, Any]:
    return {
        **FULL, "method": text, "stages": [text], "seconds": {text: 1.0}, "versions": {text: text}, "command": text,
        "data": {**FULL["data"], "name": text, "fingerprint": text, "licence": text}, "space": text,
    }  # fmt: skip


def evidence(text: str) -> dict[str, Any]:
    rows = [{**row, "method": text, "verdict": text, "recipe": text} for row in EVALUATION["rows"]]
    return {
        "evaluation": {"protocol": text, "data": text, "command": text, "rows": rows},
        "copies": {**COPIES, "space": text},
    }


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_no_text_of_others_breaks_the_card(text: str, tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard

    shown = []
    for name, given in (("tame", "tame"), ("wild", text)):
        make(("z/z", "a", given), **hostile(given)).save(tmp_path / name)
        add_evidence(tmp_path / name, **evidence(given))
        found = DatasetCard.load(tmp_path / name / "README.md").data
        assert set(found.to_dict()) - {"license_name"} == {
            "license", "pretty_name", "task_categories", "size_categories", "tags", "configs",
        }  # fmt: skip
        shown.append(structure(readme(tmp_path / name)))
    (kinds, tame, _), (wild_kinds, wild, fences) = shown
    assert wild_kinds == kinds
    assert wild == [words.replace("tame", line(text)) for words in tame]
    assert fences.count(re.sub("[\u202e\r]", "", text) + "\n") == 2


def test_commands_are_shown_as_they_are(saved) -> None:
    command = "gendistill distill --data.name 'a\n```\nb|c `d`'"
    fences = structure(readme(saved(make(command=command))))[-1]
    assert command + "\n" in fences


def test_the_code_survives_hostile_class_names(saved, monkeypatch: pytest.MonkeyPatch) -> None:
    original = make((*HOSTILE, "\t", "\\n", "%s", "{}"))
    folder = saved(original)
    for number in range(3):
        check_read(run(folder, number, monkeypatch), original)
