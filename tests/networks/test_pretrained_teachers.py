"""Published classifiers as teachers: tiny random networks saved as their own libraries save them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gendistill as gd
from gendistill.cli import USAGE
from gendistill.config import Pretrained, TeacherConfig
from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.loading import licence_of
from gendistill.networks import pretrained
from gendistill.networks.factories import batch_norm_layers
from gendistill.networks.feature_extractors import load_backbone
from gendistill.networks.pretrained import open_pretrained, rebuild_pretrained
from gendistill.networks.published_classifiers import hash_source, torchvision_build, torchvision_weights
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_training import train_teacher
from gendistill.seeding import torch_rng
from tests.helpers import files, gendistill
from tests.networks.classifier_folders import MEAN, STD, timm_folder, transformers_folder

CLASSES = ("tench", "goldfish", "n01484850")  # rows 0, 1 and 2 of ImageNet
SHARED = Path(__file__).resolve().parents[3] / "shared"
EFFICIENTNET = SHARED / "models" / "tf_efficientnet_lite0.in1k"
IMAGENETTE = SHARED / "data" / "imagenette"


def pictures(count: int, channels: int = 3, size: int = 16) -> Tensor:
    """Smooth random ones, brighter from one to the next, so that thirds of them can be told apart."""
    small = torch.rand(count, channels, 4, 4, generator=torch_rng(0, "pictures"))
    shade = torch.arange(count).view(-1, 1, 1, 1) * 3 // count / 3
    return nn.functional.interpolate(0.3 * small + 0.6 * shade, size, mode="bicubic").mul(255).clamp(0, 255).byte()


def collection(classes: tuple[str, ...] = CLASSES, channels: int = 3) -> gd.RealData:
    images = pictures(16 * len(classes), channels)
    labels = torch.arange(len(images)) // 16
    return gd.RealData.from_arrays(images.permute(0, 2, 3, 1).numpy(), labels.numpy(), classes=classes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as files, in folders named as the classes."""
    root = tmp_path_factory.mktemp("images")
    for i, image in enumerate(pictures(48)):
        place = root / CLASSES[i // 16]
        place.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{i:02d}.png")
    return root


def opened(source: object, classes: tuple[str, ...] = CLASSES, channels: int = 3, **options: Any) -> Any:
    chosen = Pretrained(source=str(source), **options)
    return open_pretrained(chosen, classes=classes, channels=channels, image_size=16).eval()


def test_timm_logits_are_the_rows_of_our_classes_on_images_prepared_as_its_own(tmp_path: Path) -> None:
    import timm

    network = opened(timm_folder(tmp_path))
    own = timm.create_model("resnet10t", num_classes=1000).eval()
    own.load_state_dict(load_file(tmp_path / "model.safetensors"))
    images = pictures(4)
    resized = nn.functional.interpolate(images.float(), (32, 32), mode="bilinear", antialias=True).clamp(0, 255)
    prepared = (resized / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        found, logits = network(to_float(images)), own(prepared)
        torch.testing.assert_close(found, logits[:, [0, 1, 2]], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(network.classify(network.features(to_float(images))), found)
        features = own.forward_head(own.forward_features(prepared), pre_logits=True)
        torch.testing.assert_close(network.features(to_float(images)), features, atol=1e-4, rtol=1e-4)
    assert network.record["rows"] == {"tench": 0, "goldfish": 1, "n01484850": 2}
    assert network.record["licence"] == "mit"


def test_gradients_reach_every_pixel_through_the_resizing(tmp_path: Path) -> None:
    network = opened(timm_folder(tmp_path))
    images = to_float(pictures(2)).requires_grad_()
    network(images).logsumexp(1).sum().backward()
    assert images.grad is not None
    assert (images.grad.abs().sum(1) > 0).all()


def test_grey_images_are_repeated_and_others_refused(tmp_path: Path) -> None:
    network = opened(timm_folder(tmp_path / "rgb"), channels=1)
    grey = to_float(pictures(2, 1))
    torch.testing.assert_close(network(grey), network(grey.expand(-1, 3, -1, -1)))
    one = timm_folder(tmp_path / "grey", model_args={"in_chans": 1})
    with pytest.raises(ConfigError, match=r"takes images of 1 channel\(s\), the data have 3; expected 1 or 1"):
        opened(one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_logits_are_the_rows_of_names_in_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    import transformers as hf

    network = opened(transformers_folder(tmp_path, dtype=dtype))
    assert network.record["rows"] == {"tench": 2, "goldfish": 0, "n01484850": 3}
    assert network.record["licence"] == "bsd-3-clause"
    own = hf.AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    images = to_float(pictures(3))
    with torch.no_grad():
        logits = own(pixel_values=network.prepared(images)).logits
        torch.testing.assert_close(network(images), logits[:, [2, 0, 3]])


@pytest.mark.slow
def test_a_torchvision_file_says_how_many_classes_it_has(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    net = torchvision.models.resnet18(num_classes=1000).eval()
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    network = opened(tmp_path / "weights.safetensors", network="torchvision:resnet18", input_size=32)
    images = to_float(pictures(2))
    with torch.no_grad():
        torch.testing.assert_close(network(images), net(network.prepared(images))[:, :3])
    small = {k: v[:7].clone() if k.startswith("fc.") else v for k, v in net.state_dict().items()}
    save_file(small, tmp_path / "seven.safetensors")
    network = opened(tmp_path / "seven.safetensors", network="torchvision:resnet18", input_size=32)
    assert (network.record["outputs"], network.record["rows"]) == (7, None)


@pytest.mark.slow
def test_images_are_prepared_for_the_torchvision_weights_that_are_named(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    file = tmp_path / "weights.safetensors"
    save_file(torchvision.models.efficientnet_b1().state_dict(), file)
    for network, mode in (("efficientnet_b1", "bilinear"), ("EfficientNet_B1.IMAGENET1K_V1", "bicubic")):
        record = opened(file, network=f"torchvision:{network}", input_size=32).record
        assert (record["architecture"], record["preprocessing"]["mode"]) == ("efficientnet_b1", mode)


def test_a_torchvision_transformer_has_the_side_of_its_weights() -> None:
    pytest.importorskip("torchvision")
    sides = {"vit_b_16": 224, "vit_b_16.IMAGENET1K_SWAG_E2E_V1": 384, "vit_h_14": 518}
    found = {name: torchvision_build(*torchvision_weights(name)) for name in sides}
    assert found == {name: {"image_size": side} for name, side in sides.items()}


@pytest.mark.parametrize("branches", [True, False])
def test_torchvisions_older_networks_convert_their_images_as_its_weights_need_it(
    branches: bool, tmp_path: Path
) -> None:
    torchvision = pytest.importorskip("torchvision")
    options: dict[str, Any] = {"transform_input": True, "init_weights": False}
    net = torchvision.models.googlenet(weights=None, num_classes=7, aux_logits=branches, **options).eval()
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    network = opened(tmp_path / "weights.safetensors", network="torchvision:googlenet", input_size=32, head="new")
    images = to_float(pictures(2))
    taken: list[Tensor] = []
    net.fc.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    with torch.no_grad():
        net(network.prepared(images))
        torch.testing.assert_close(network.features(images), taken[0])
        again = rebuild_pretrained(network.record, 3).eval()
        again.load_state_dict(network.state_dict())
        torch.testing.assert_close(again(images), network(images))


def test_the_global_generator_stays_as_it_was(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    for source in (timm_folder(tmp_path / "timm"), transformers_folder(tmp_path / "vit")):
        rebuild_pretrained(opened(source).record, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_of_weights_opens_by_the_config_beside_it_or_by_its_architecture(tmp_path: Path) -> None:
    whole = opened(timm_folder(tmp_path / "timm"))
    file = (tmp_path / "timm" / "model.safetensors").rename(tmp_path / "timm" / "other.safetensors")
    images = to_float(pictures(2))
    torch.testing.assert_close(opened(file)(images), whole(images))
    alone = shutil.copy(file, tmp_path / "alone.safetensors")
    assert opened(alone, network="timm:resnet10t").record["rows"] == whole.record["rows"]
    hf = transformers_folder(tmp_path / "hf")
    first = opened(hf)(images)
    file = (hf / "model.safetensors").rename(hf / "best.safetensors")
    torch.testing.assert_close(opened(file)(images), first)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["timm", "torchvision", "vit", "resnet"])
def test_the_teacher_folder_is_loaded_without_its_source(kind: str, tmp_path: Path) -> None:
    source, options = tmp_path / "source", {}
    if kind == "timm":
        timm_folder(source)
    elif kind == "torchvision":
        torchvision = pytest.importorskip("torchvision")
        source = tmp_path / "source.safetensors"
        save_file(torchvision.models.resnet18().state_dict(), source)
        options = {"network": "torchvision:resnet18", "input_size": 32}
    else:
        transformers_folder(source, kind)
    data = collection()
    teacher = train_teacher(data, pretrained=Pretrained(source=str(source), **options))
    teacher.save_pretrained(tmp_path / "teacher")
    shutil.rmtree(source) if source.is_dir() else source.unlink()
    again = Teacher.from_pretrained(tmp_path / "teacher")
    assert again.hash() == teacher.hash()
    assert again.meta["pretrained"] == json.loads(json.dumps(teacher.meta["pretrained"]))
    assert set(again.statistics.means) == set(batch_norm_layers(again.network))
    images = to_float(data.test.images)
    torch.testing.assert_close(again.network(images), teacher.network(images))
    assert not any(parameter.requires_grad for parameter in again.network.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "local-dir:/tmp"},
        {"architecture": "no_such_network"},
        {"library": "torchvision", "architecture": "maskrcnn_resnet50_fpn"},
        {"config": {"facts": {}, "arguments": {"checkpoint_path": "weights.pth"}}},
        {"head": "nowhere"},
        {"library": "keras"},
        {"rows": "all"},
    ],
)
def test_a_changed_record_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    teacher = train_teacher(collection(), pretrained=str(timm_folder(tmp_path / "source")))
    teacher.meta["pretrained"] = teacher.meta["pretrained"] | change  # type: ignore[typeddict-item]
    teacher.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ArtifactError, match=r"teacher\.json"):
        Teacher.from_pretrained(tmp_path / "teacher")


def test_where_names_are_missing_a_new_layer_is_fitted_on_the_features(tmp_path: Path) -> None:
    data = collection(("one", "two", "three"))
    source = timm_folder(tmp_path)
    teacher = train_teacher(data, pretrained=str(source))
    assert teacher.meta["pretrained"]["rows"] is None
    assert teacher.meta["accuracy"]["train"] > 0.9
    features, labels = teacher.statistics.features, data.train.labels
    logits = teacher.network.classify(features)  # type: ignore[operator]
    assert nn.functional.cross_entropy(logits, labels) < 0.5
    two = collection(("one", "two"))
    assert train_teacher(two, pretrained=str(source)).meta["accuracy"]["train"] > 0.9
    assert opened(source, ("tench", "two", "three")).record["rows"] is None
    given = opened(source, ("tench", "two", "three"), label_map={"two": 5, "three": 7})
    assert given.record["rows"] == {"tench": 0, "two": 5, "three": 7}


def test_a_new_layer_of_many_images_is_fitted_on_some_of_every_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, rng = opened(timm_folder(tmp_path), ("one", "two", "three")), torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    features = torch.randn(90, network.head.in_features, generator=rng) + 3 * labels[:, None]
    index = torch.cat([torch.nonzero(labels == c).flatten()[[0, 10, 19, 29]] for c in range(3)]).sort().values
    network.fit_head(features[index], labels[index])
    expected = network.head.weight.clone()
    network.fit_head(features, labels)
    assert not torch.equal(network.head.weight, expected)
    monkeypatch.setattr(pretrained, "HEAD_BYTES", 12 * features[0].nbytes)
    network.fit_head(features, labels)
    assert torch.equal(network.head.weight, expected)


def test_a_network_without_a_last_layer_gets_one(tmp_path: Path) -> None:
    data = collection()
    for source in (timm_folder(tmp_path / "timm", outputs=0), transformers_folder(tmp_path / "hf", "vit_base")):
        teacher = train_teacher(data, pretrained=str(source))
        teacher.save_pretrained(source / "teacher")
        assert teacher.meta["pretrained"]["rows"] is None
        assert Teacher.from_pretrained(source / "teacher").hash() == teacher.hash()
        with pytest.raises(ConfigError, match="head is 'mapped'; expected new: the file has no last layer"):
            opened(source, head="mapped")


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["none", "head", "all"])
def test_only_what_is_tuned_changes_and_statistics_are_of_the_result(tune: Any, tmp_path: Path) -> None:
    data, source = collection(), timm_folder(tmp_path)
    config = TeacherConfig(batch_size=16, **({} if tune == "none" else {"steps": 4}))
    teacher = train_teacher(data, config, pretrained=Pretrained(source=str(source), tune=tune))
    before, after = opened(source).state_dict(), teacher.network.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    head = {name for name in changed if name.startswith("network.fc.")}
    assert bool(head) == (tune != "none")
    assert bool(changed - head) == (tune == "all")
    with torch.no_grad():
        features = teacher.network.features(to_float(data.train.images))  # type: ignore[operator]
    torch.testing.assert_close(teacher.statistics.features, features, atol=1e-4, rtol=1e-4)
    again = train_teacher(data, config, pretrained=Pretrained(source=str(source), tune=tune))
    assert again.hash() == teacher.hash()


@pytest.mark.slow
def test_every_command_takes_the_teacher(folder: Path, tmp_path: Path) -> None:
    source, data, made = timm_folder(tmp_path / "source"), ("--data", folder), tmp_path / "made"
    assert gendistill("teacher", "--pretrained", source, *data, "--output_dir", made / "teacher") == 0
    shutil.rmtree(source)
    teacher = ("--teacher", made / "teacher")
    pool = ("distill", "--method", "random", "--ipc", 4, *data, "--output_dir", made / "pool")
    wmdd = ("distill", "--method", "wmdd", "--ipc", 2, "--wmdd.steps", 2, *data, *teacher)
    refine = (
        "refine",
        "--surrogate",
        made / "pool/ipc-4",
        *teacher,
        "--ipc",
        2,
        "--steps",
        2,
        "--match_iterations",
        2,
        "--match_from",
        1,
    )
    refined = made / "refined" / "ipc-2"
    label = ("label", "--surrogate", refined, *teacher, "--output_dir", made / "labelled")
    judge = ("--steps", 2, "--runs", 3, "--width", 8, "--baselines", "random", "kmeans")
    for command in (pool, (*wmdd, "--output_dir", made / "wmdd"), (*refine, "--output_dir", made / "refined"), label):
        assert gendistill(*command) == 0
    sets = ("--surrogate", made / "labelled", made / "wmdd/ipc-2")
    assert gendistill("evaluate", *sets, *data, *teacher, *judge, "--output_dir", made / "evaluation") == 0


def test_without_batch_norm_it_guides_by_features_and_is_refused_where_moments_are_matched(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = transformers_folder(tmp_path / "source")
    made = ("--pretrained", source, "--data", folder, "--output_dir", tmp_path / "teacher")
    assert gendistill("teacher", *made) == 0
    wmdd = ("distill", "--method", "wmdd", "--ipc", 1, "--wmdd.steps", 2, "--teacher", tmp_path / "teacher")
    assert gendistill(*wmdd, "--data", folder, "--output_dir", tmp_path / "refused") == USAGE
    assert "has no batch-norm layers" in capsys.readouterr().err
    without = ("--wmdd.batch_norm_weight", 0, "--data", folder, "--output_dir", tmp_path / "made")
    assert gendistill(*wmdd, *without) == 0


def test_a_resumed_command_keeps_the_folder_and_notices_other_weights(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = timm_folder(tmp_path / "source")
    command = ("teacher", "--pretrained", source, "--data", folder, "--output_dir", tmp_path / "teacher")
    assert gendistill(*command) == 0
    before = files(tmp_path / "teacher")
    resume = ("--resume_from_checkpoint", "latest")
    assert gendistill(*command, *resume) == 0
    assert files(tmp_path / "teacher") == before
    weights = load_file(source / "model.safetensors")
    save_file({k: v * 2 if k == "fc.bias" else v for k, v in weights.items()}, source / "model.safetensors")
    assert gendistill(*command, *resume) == USAGE
    assert "was made with other settings (inputs.pretrained" in capsys.readouterr().err


def test_only_files_that_are_loaded_decide_the_hash_of_a_source(tmp_path: Path) -> None:
    import transformers as hf

    whole = transformers_folder(tmp_path / "whole")
    parts = tmp_path / "parts"
    shutil.copytree(whole, parts)
    (parts / "model.safetensors").unlink()
    hf.AutoModelForImageClassification.from_pretrained(whole).save_pretrained(parts, max_shard_size="4KB")
    assert len(list(parts.glob("*.safetensors"))) > 1
    for source in (whole, parts, timm_folder(tmp_path / "timm")):
        before = hash_source(Pretrained(source=str(source)))
        save_file({"x": torch.ones(1)}, source / "of_others.safetensors")
        assert hash_source(Pretrained(source=str(source))) == before
        used = sorted(source.glob("model*.safetensors"))[-1]
        save_file({name: value * 2 for name, value in load_file(used).items()}, used)
        assert hash_source(Pretrained(source=str(source))) != before
    used.unlink()
    save_file({"x": torch.ones(1)}, source / "more.safetensors")
    with pytest.raises(ArtifactError, match=r"more\.safetensors, of_others\.safetensors; expected model\.safetensors"):
        hash_source(Pretrained(source=str(source)))
    (parts / "model.safetensors.index.json").write_text('{"weight_map": {"x": "nowhere.safetensors"}}')
    with pytest.raises(ArtifactError, match="names no weights, or files that are not there"):
        hash_source(Pretrained(source=str(parts)))


@pytest.mark.slow
def test_a_teacher_that_prepares_images_otherwise_is_another_one(tmp_path: Path) -> None:
    source = str(timm_folder(tmp_path / "timm"))
    one, other = (train_teacher(collection(), pretrained=Pretrained(source=source, input_size=s)) for s in (32, 40))
    assert all(map(torch.equal, one.network.state_dict().values(), other.network.state_dict().values()))
    assert one.hash() != other.hash()
    one.save_pretrained(tmp_path / "teacher")
    assert Teacher.from_pretrained(tmp_path / "teacher").hash() == one.hash() == one.facts()["hash"]


@pytest.mark.parametrize("bars", [True, False])
def test_transformers_reports_afterwards_as_before(bars: bool, tmp_path: Path) -> None:
    from transformers import logging

    source, level, shown = transformers_folder(tmp_path), logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        logging.enable_progress_bar() if bars else logging.disable_progress_bar()
        opened(source)
        load_backbone(f"transformers:{source}")
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, bars)
        assert are_progress_bars_disabled() is not bars
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar() if shown else logging.disable_progress_bar()


def test_a_last_layer_alone_trains_on_one_image_a_batch(tmp_path: Path) -> None:
    data, source = collection(), str(timm_folder(tmp_path))
    config = TeacherConfig(batch_size=1, steps=1)
    assert train_teacher(data, config, pretrained=Pretrained(source=source, tune="head"))
    with pytest.raises(ConfigError, match="batch norm needs at least 2 images a batch"):
        train_teacher(data, config, pretrained=Pretrained(source=source, tune="all"))


def broken(source: Path, change: Any) -> None:
    weights = load_file(source / "model.safetensors")
    change(weights)
    save_file(weights, source / "model.safetensors")


@pytest.mark.parametrize(
    ("library", "change", "says"),
    [
        ("timm", lambda w: w.pop("conv1.0.weight"), "conv1.0.weight"),
        ("timm", lambda w: w.update({"bn1.weight": torch.ones(3)}), "size mismatch for bn1.weight"),
        (
            "timm",
            lambda w: w.update({"bn1.weight": w["bn1.weight"] * float("nan")}),
            "not finite, such as 'bn1.weight'",
        ),
        ("vit", lambda w: w.pop("vit.layernorm.weight"), "lacks 1 weight(s), such as 'vit.layernorm.weight'"),
        ("vit", lambda w: w.update({"vit.layernorm.weight": torch.ones(3)}), "cannot be loaded by transformers"),
    ],
)
def test_damaged_weights_are_refused_in_one_message(
    library: str, change: Any, says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = timm_folder(tmp_path / "source") if library == "timm" else transformers_folder(tmp_path / "source")
    broken(source, change)
    command = ("teacher", "--pretrained", source, "--data", folder, "--output_dir", tmp_path / "teacher")
    assert gendistill(*command, "--quiet") == USAGE
    said = capsys.readouterr().err
    assert says in said
    assert said.count("gendistill: ") == 1
    assert not (tmp_path / "teacher").exists()


def test_a_pickle_is_refused_with_the_line_that_converts_it(tmp_path: Path) -> None:
    source = timm_folder(tmp_path / "source")
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    images, expected = to_float(pictures(2)), opened(source)
    (source / "model.safetensors").unlink()
    for named in (source, source / "pytorch_model.bin"):
        with pytest.raises(ArtifactError, match=r"Convert a file of tensors by name: python -c .*save_file") as refused:
            opened(named)
    line = str(refused.value).partition('python -c "')[2].rpartition('"')[0]
    exec(line, {})
    torch.testing.assert_close(opened(source / "pytorch_model.safetensors")(images), expected(images))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": "nowhere/at/all.safetensors"}, "There is no file nowhere/at/all.safetensors"),
        ({"source": "timm:resnet_nothing"}, "timm has no weights of 'resnet_nothing'; names like it"),
        ({"source": "timm:resnet18.nothing"}, "timm has no weights of 'resnet18.nothing'; names like it: resnet18"),
        ({"source": "torchvision:resnet18"}, r"pickled\. Save them once: python -c"),
        ({"source": "FILE", "revision": "main"}, "expected null: a file has no revisions"),
        ({"source": "FOLDER", "network": "timm:resnet10t"}, "expected null unless --pretrained is a safetensors file"),
        ({"source": "FILE", "network": "timm:nothing"}, "timm has no such network"),
        ({"source": "FILE", "network": "timm:resnet18.nothing"}, "timm has no such network. Names like it: resnet18"),
        ({"source": "FILE", "network": "torchvision:nothing"}, "torchvision has no such network"),
        ({"source": "FILE", "network": "torchvision:maskrcnn_resnet50_fpn"}, "torchvision has no such network"),
        ({"source": "FILE", "network": "torchvision:resnet18.V9"}, "expected no weights, or one of IMAGENET1K_V1"),
        ({"source": "FILE", "network": "timm:vit_tiny_patch16_224"}, "no tensor head.weight, the network's last layer"),
        ({"source": "FOLDER", "head": "mapped"}, r"the model has no 'dax'.*teacher\.pretrained\.label_map.*head new"),
        ({"source": "FOLDER", "label_map": {"dax": 1000}}, "expected a condition index from 0 to 999"),
    ],
)
def test_what_cannot_be_opened_is_named(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    source = timm_folder(tmp_path)
    places = {"FOLDER": source, "FILE": source / "model.safetensors"}
    options = options | {"source": str(places.get(options["source"], options["source"]))}
    with pytest.raises((ConfigError, ArtifactError), match=says):
        open_pretrained(Pretrained(**options), classes=("tench", "dax"), channels=3, image_size=16)


@pytest.mark.slow
def test_options_that_decide_nothing_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = timm_folder(tmp_path / "source")
    command = ("teacher", "--pretrained", source, "--network", "convnet", "--steps", 3, "--data", folder)
    assert gendistill(*command, "--mixed_precision", "no", "--output_dir", tmp_path / "made") == 0
    said = capsys.readouterr().err
    assert "which is not trained: teacher.pretrained.tune head or all trains it" in said
    assert "These options are not used: network, steps, mixed_precision." in said
    tuned = (*command, "--batch_size", 8, "--pretrained.tune", "head", "--output_dir", tmp_path / "tuned")
    assert gendistill(*tuned) == 0
    assert "The network is a published one. These options are not used: network." in capsys.readouterr().err


def test_rows_of_a_new_layer_are_not_mapped() -> None:
    with pytest.raises(ConfigError, match="which has no rows to map"):
        Pretrained(source="x", head="new", label_map={"tench": 0})


def test_network_and_pretrained_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="network and pretrained are both given"):
        train_teacher(collection(), network="convnet", pretrained="x")


@pytest.mark.slow
@pytest.mark.skipif(not (EFFICIENTNET.is_dir() and IMAGENETTE.is_dir()), reason="no pretrained network, or no images")
def test_an_imagenet_network_serves_ten_classes_by_ten_rows(tmp_path: Path) -> None:
    from pyarrow import parquet

    for path in IMAGENETTE.glob("*.parquet"):  # every 40th image, as decoding all takes ten seconds
        table = parquet.read_table(path)
        parquet.write_table(table.take([*range(0, len(table), 40)]), tmp_path / path.name)
    data = gd.load_data(name=str(tmp_path), image_size=112, max_per_class=4)
    network = open_pretrained(
        Pretrained(source=str(EFFICIENTNET)), classes=data.classes, channels=3, image_size=112
    ).eval()
    assert list((network.record["rows"] or {}).values()) == [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    assert len(batch_norm_layers(network)) == 49
    with torch.no_grad():
        found = torch.cat([network(to_float(part)).argmax(1) for part in data.test.images.split(16)])
    assert (found == data.test.labels).float().mean() > 0.93


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"mean": 0.5}, "mean is 0.5; expected a list of numbers, one a channel"),
        ({"std": 0.5}, "std is 0.5; expected a list of positive numbers"),
        ({"std": [0.5, 0, 0.5]}, "expected a list of positive numbers"),
        ({"mean": [0.5, "x", 0.5]}, "expected a list of numbers"),
        ({"mean": [0.5]}, "expected a list of numbers, one a channel"),
        ({"license": 5}, "config.json has the license 5; expected text"),
        ({"license": ["mit"]}, "expected text"),
    ],
)
def test_facts_of_a_timm_folder_that_cannot_be_are_refused_when_it_is_opened(
    facts: dict[str, Any], says: str, tmp_path: Path
) -> None:
    source = timm_folder(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config["pretrained_cfg"] |= facts
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=re.escape(says)):
        opened(source)


@pytest.mark.parametrize(
    "change",
    [{"image_mean": 0.5}, {"image_std": [0.5, 0.0, 0.5]}, {"image_std": [1.0]}, {"rescale_factor": "x"}, {"size": "x"}],
)
def test_a_processor_that_cannot_be_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    source = transformers_folder(tmp_path / "source")
    path = source / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match="does not say how images are resized and normalised"):
        opened(source)


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_weights_that_are_a_folder_are_refused_in_one_message(
    library: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = timm_folder(tmp_path / "source") if library == "timm" else transformers_folder(tmp_path / "source")
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").mkdir()
    for named in (source, source / "model.safetensors"):
        command = ("teacher", "--pretrained", named, "--data", folder, "--output_dir", tmp_path / "teacher")
        assert gendistill(*command, "--quiet") == USAGE
        assert "safetensors" in capsys.readouterr().err
        assert not (tmp_path / "teacher").exists()


def test_a_model_card_without_a_table_says_no_licence(tmp_path: Path) -> None:
    for text in (b"---\n- mit\n---\n", b"---\nmit\n---\n", b"\xff"):
        (tmp_path / "README.md").write_bytes(text)
        assert licence_of(tmp_path) == "unknown"
