"""Commands whose sets are stored as WebP or JPEG: what is judged, labelled, shown and exported is what is stored."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from gendistill.surrogate.manifest import read_manifest, verify
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import TINY, files, gendistill
from tests.processes import launch, start

FORMATS = ("--sample.image_format", "webp", "--sample.image_quality", 40, "--refine.image_format", "jpeg")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "coded"
    assert gendistill("run", "--config", TINY, *FORMATS, "--output_dir", out) == 0
    return out


@pytest.mark.slow
def test_a_run_stores_its_sets_in_the_formats_of_their_stages(run: Path) -> None:
    found = {path.parent.relative_to(run).as_posix(): read_manifest(path.parent) for path in run.rglob("manifest.json")}
    assert len(found) == 9  # samples, base and selected and refined ones at two IPCs, and the pool
    for name, manifest in found.items():
        assert manifest["image_format"]["format"] == ("jpeg" if name.startswith("refined") else "webp"), name
        assert not verify(run / name)
    assert not files(run, "**/train/**/*.png")
    assert set(found["refined/ipc-2"]["w2"]) == {"before", "after", "stored"}
    assert gendistill("verify", *(run / name for name in found)) == 0
    assert gendistill("run", "--config", TINY, *FORMATS, "--output_dir", run, "--resume_from_checkpoint", "latest") == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["samples", "refined"])
def test_a_set_has_one_row_in_its_run_and_alone(run: Path, name: str, tmp_path: Path) -> None:
    folder = run / name / "ipc-2"
    options = ("--config", TINY, "--surrogate", folder, "--output_dir", tmp_path / "evaluation")
    assert gendistill("evaluate", *options) == 0
    content = SurrogateSet.load(folder).content_hash()
    alone, whole = (
        next(row for row in json.loads((place / "summary.json").read_text())["rows"] if row["set"] == content)
        for place in (tmp_path / "evaluation", run / "evaluation")
    )
    for key in ("accuracy", "per_class", "bytes", "ci95_vs_random", "verdict", "ece"):
        assert alone[key] == whole[key], key
    assert alone["bytes"]["images"] == read_manifest(folder)["bytes"]["images"]


@pytest.mark.slow
def test_a_set_is_shown_and_exported_as_it_is_stored(run: Path, tmp_path: Path) -> None:
    folder = run / "refined" / "ipc-2"
    assert gendistill("show", folder, "--teacher", run / "teacher", "--output_dir", tmp_path / "shown") == 0
    for kind in ("imagefolder", "parquet", "webdataset", "ddranking"):
        out = tmp_path / kind
        assert gendistill("export", "--surrogate", folder, "--format", kind, "--output_dir", out) == 0
    avif = ("--image_format", "avif", "--image_quality", 70)
    assert gendistill("export", "--surrogate", folder, *avif, "--output_dir", tmp_path / "avif") == 0
    assert read_manifest(tmp_path / "avif")["image_format"]["quality"] == 70
    refused = ("--format", "ddranking", *avif, "--output_dir", tmp_path / "no")
    assert gendistill("export", "--surrogate", folder, *refused) == 2
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", [("per_image",), ("per_view", "--steps", 4), ("online",)], ids=lambda mode: mode[0])
def test_labels_are_added_to_the_files_as_they_are(run: Path, mode: tuple[object, ...], tmp_path: Path) -> None:
    folder, labelled = run / "refined" / "ipc-2", tmp_path / "labelled"
    options = ("--surrogate", folder, "--teacher", run / "teacher", "--mode", *mode)
    assert gendistill("label", *options, "--output_dir", labelled) == 0
    assert files(labelled, "train/**/*") == files(folder, "train/**/*")
    assert not verify(labelled)
    made = SurrogateSet.load(labelled)
    assert made.soft_labels is not None
    made.save(tmp_path / "again")
    own = ("stage.json", "config.yaml", "log.jsonl")
    expected = {name: data for name, data in files(labelled, "**/*").items() if name not in own}
    assert files(tmp_path / "again", "**/*") == expected


@pytest.mark.slow
def test_images_that_are_only_selected_are_not_coded_again(run: Path, tmp_path: Path) -> None:
    pool = run / "samples" / "pool"
    options = ("--surrogate", pool, "--teacher", run / "teacher", "--ipc", 1, "--steps", 0)
    same = ("--image_format", "webp", "--image_quality", 40)
    assert gendistill("refine", *options, *same, "--output_dir", tmp_path / "same") == 0
    assert gendistill("refine", *options, "--output_dir", tmp_path / "png") == 0
    first, second = (SurrogateSet.load(tmp_path / name / "selected" / "ipc-1") for name in ("same", "png"))
    assert torch.equal(first.images, second.images)
    chosen = files(tmp_path / "same" / "ipc-1", "train/**/*").values()
    assert set(chosen) <= set(files(pool, "train/**/*").values())


@pytest.mark.slow
def test_a_stage_continues_with_its_format_and_refuses_another(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("sample", "--generator", run / "generator", "--config", TINY, "--output_dir", tmp_path / "samples")
    webp = ("--image_format", "webp", "--image_quality", 40)
    assert gendistill(*options, *webp) == 0
    assert files(tmp_path / "samples", "**/*.webp") == files(run / "samples", "**/*.webp")
    again = (*options, "--resume_from_checkpoint", "latest")
    assert gendistill(*again, *webp) == 0
    assert gendistill(*again) == 2
    assert "options.image_format: 'webp' there, 'png' now" in capsys.readouterr().err


@pytest.mark.slow
def test_snapshots_of_matching_are_stored_as_the_set_is(tmp_path: Path) -> None:
    few = ("--matching.width", 8, "--matching.real_batch", 8, "--matching.compile", "false", "--iterations", 2)
    options = ("--method", "dm", "--ipc", 1, *few, "--matching.snapshot_every", 1, "--data.max_per_class", 20)
    assert gendistill("distill", *options, "--image_format", "webp", "--output_dir", tmp_path / "dm") == 0
    found = [read_manifest(path.parent) for path in (tmp_path / "dm").rglob("manifest.json")]
    assert len(found) == 3
    assert {manifest["image_format"]["format"] for manifest in found} == {"webp"}


AWARE = ("--image_format", "jpeg", "--image_quality", 20, "--compression_aware", "true")
DM = ("--matching.width", 8, "--matching.real_batch", 8, "--matching.compile", "false", "--data.max_per_class", 20)


@pytest.mark.slow
def test_refinement_and_matching_that_code_in_every_step_end_alike_after_a_kill(run: Path, tmp_path: Path) -> None:
    """The refinement has two chunks and a matching, whose state at its last checkpoint goes on."""
    options = ("refine", "--surrogate", run / "samples" / "pool", "--teacher", run / "teacher", "--ipc", 2, *AWARE)
    few = ("--steps", 6, "--batch_size", 4, "--match_iterations", 60, "--match_from", 1, "--mixed_precision", "no")
    assert gendistill(*options, *few, "--output_dir", tmp_path / "whole") == 0
    process, partial = start(*options, *few, "--output_dir", tmp_path / "killed"), tmp_path / "killed.partial"
    while process.poll() is None and len(list(partial.glob("chunks/*/*.safetensors"))) < 2:
        time.sleep(0.01)
    process.kill()
    assert partial.is_dir(), "it ended before it was killed"
    resume = ("--resume_from_checkpoint", "latest")
    assert gendistill(*options, *few, *resume, "--output_dir", tmp_path / "killed") == 0
    assert files(tmp_path / "killed", "**/*.jpg") == files(tmp_path / "whole", "**/*.jpg") != {}
    made = read_manifest(tmp_path / "whole" / "ipc-2")
    assert made["compression_aware"] == made["image_format"]
    assert made["compression_aware"]["quality"] == 20
    assert not verify(tmp_path / "whole" / "ipc-2")
    selected = read_manifest(tmp_path / "whole" / "selected" / "ipc-2")
    assert "compression_aware" not in selected


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dm", "wmdd"])
def test_a_method_says_that_its_steps_coded_and_does_not_go_on_without(
    run: Path, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"dm": (*DM, "--iterations", 2), "wmdd": ("--teacher", run / "teacher", "--wmdd.steps", 3)}[method]
    options = ("distill", "--method", method, "--ipc", 1, *own)
    assert gendistill(*options, *AWARE, "--output_dir", tmp_path / "aware") == 0
    assert gendistill(*options, *AWARE[:4], "--output_dir", tmp_path / "after") == 0
    aware, after = (SurrogateSet.load(tmp_path / name / "ipc-1") for name in ("aware", "after"))
    assert not torch.equal(aware.images, after.images)
    assert aware.meta["compression_aware"]["format"] == "jpeg"
    assert "compression_aware" not in after.meta
    capsys.readouterr()
    resume = ("--output_dir", tmp_path / "aware", "--resume_from_checkpoint", "latest")
    assert gendistill(*options, *AWARE, *resume) == 0
    assert gendistill(*options, *AWARE[:4], *resume) == 2
    assert "options.compression_aware: True there, False now" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_code_the_images_of_one(run: Path, tmp_path: Path) -> None:
    refine = ("--surrogate", run / "samples" / "pool", "--teacher", run / "teacher", "--ipc", 2, "--steps", 3, *AWARE)
    refine = (*refine, "--batch_size", 6, "--mixed_precision", "no")
    distill = ("--method", "dc", "--ipc", 1, *DM, "--iterations", 2, "--matching.inner_steps", 2, *AWARE)
    both = ("--num_processes", 2, "--output_dir")
    together = launch(
        ("refine", *refine, *both, tmp_path / "two" / "refine"),
        ("train/distill.py", *distill, *both, tmp_path / "two" / "distill"),
    )
    for done in together:
        assert done.returncode == 0, done.stderr[-2000:]
    for verb, options in (("refine", refine), ("distill", distill)):
        assert gendistill(verb, *options, "--output_dir", tmp_path / "one" / verb) == 0
        made = files(tmp_path / "one" / verb, "**/*.jpg")
        assert made == files(tmp_path / "two" / verb, "**/*.jpg") != {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("distill", "--method", "dm", "--compression_aware", "true"), "false with image_format png"),
        (("distill", "--method", "kmeans", *AWARE), "false with method kmeans; it is an option of wmdd, dc,"),
        (("refine", "--surrogate", ".", "--teacher", ".", *AWARE, "--steps", 0), "false with pack above 1, steps 0"),
        (("refine", "--surrogate", ".", "--teacher", ".", *AWARE, "--image_format", "webp_lossless", "--image_quality",
          90), "false with image_format webp_lossless, which keeps every pixel"),
    ],
    ids=["lossless", "coreset", "nothing moves", "webp_lossless"],
)  # fmt: skip
def test_steps_that_have_nothing_to_code_are_refused(
    options: tuple[object, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gendistill(*options, "--output_dir", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_first_screen_says_how_a_set_compares_with_photographs_in_its_bytes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evaluation"
    options = ("--config", TINY, "--surrogate", run / "refined" / "ipc-2", "--baselines", "random", "kmeans", "coded")
    assert gendistill("evaluate", *options, "--describe", "false", "--output_dir", out) == 0
    printed = " ".join(capsys.readouterr().out.split())
    (own,) = [row for row in json.loads((out / "summary.json").read_text())["rows"] if row["set"]]
    assert f"against {own['coded']} in the same bytes: " in printed
    assert "photographs of the same bytes in the best image format at IPC 2." in printed
    assert gendistill("report", "--run", out, "--output_dir", tmp_path / "report") == 0
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    first_screen = page[page.index("<h1>") : page.index("</ol>")]
    assert "photographs of the same bytes in the best image format" in first_screen
    assert "in the same bytes" in first_screen.split("</h1>")[1]
