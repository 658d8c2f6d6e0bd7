"""The flat form of options: one round trip for all, unions on the command line, and files as they were."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gendistill import config
from gendistill.cli import main, parse
from gendistill.config import (
    Blend,
    ClassifierFree,
    DistillConfig,
    DiT,
    Features,
    Fresh,
    Gradient,
    LabelConfig,
    LoRA,
    MatchingConfig,
    ModeGuidance,
    Online,
    Patches,
    PerImage,
    PerView,
    Prototypes,
    Queue,
    Representative,
    RepulsionGuidance,
    TransportGuidance,
    UNet,
    to_dict,
)
from gendistill.config.base import Options, Range, arms, hints
from gendistill.config.flat import options_of, unflatten
from gendistill.errors import ConfigError
from tests.config.test_options import classes
from tests.helpers import TINY


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values that a type takes."""
    origin, inner = get_origin(hint), get_args(hint)
    plain = {int: st.integers(0, 9), float: st.floats(0, 1), bool: st.booleans(), Path: st.just(Path("p"))}
    if origin is Annotated:
        bound = next((extra for extra in inner[1:] if isinstance(extra, Range)), None)
        found = in_range(inner[0], bound) if bound else values(inner[0])
    elif origin is Literal:
        found = st.sampled_from(inner)
    elif origin is tuple and inner[-1] is not Ellipsis:
        found = st.tuples(*map(values, inner))
    elif origin in (tuple, list):
        found = st.lists(values(inner[0]), min_size=1, max_size=3, unique=True).map(origin)
    elif len(arms(hint)) > 1:
        found = st.one_of(map(values, arms(hint))).filter(says_something)
    elif isinstance(hint, type) and issubclass(hint, Options):
        found = made(hint)
    else:
        found = plain.get(hint, st.just("name") if hint is str else st.none())
    return found


def says_something(choice: Any) -> bool:
    """Not a choice whose options are all null or usual, where that is flat what null is."""
    return not isinstance(choice, Options) or any(getattr(choice, f.name) != f.default for f in fields(choice))


def in_range(kind: type, bound: Range) -> st.SearchStrategy[Any]:
    low, high = max(bound.low, -8), min(bound.high, 64)
    if kind is int:
        return st.integers(int(low), int(high))
    return st.floats(low, high, exclude_min=bound.open_low, exclude_max=bound.open_high)


def made(cls: type[Options]) -> st.SearchStrategy[Options]:
    """Options with any values that go together."""

    @st.composite
    def draw(rng: Any) -> Options:
        types = hints(cls)
        chosen = rng(st.sets(st.sampled_from(sorted(types)), max_size=4)) if types else set()
        required = {name for name in types if name in ("scale", "every", "count", "output_dir", "source")}
        given = {name: rng(values(types[name])) for name in sorted(chosen | (required & needed(cls)))}
        try:
            return cls(**given)
        except ConfigError:
            assume(False)
            raise

    return draw()


def needed(cls: type[Options]) -> set[str]:
    return {name for name in hints(cls) if not hasattr(cls, name) and name not in optional(cls)}


def optional(cls: type[Options]) -> set[str]:
    return {f.name for f in cls.__dataclass_fields__.values() if repr(f.default_factory) != repr(f.default)}


STAGES = [cls for cls in classes() if cls.__name__.endswith("Config") and cls.__name__ != "RunConfig"]


@pytest.mark.parametrize("cls", STAGES, ids=lambda cls: cls.__name__)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])  # rules between options
@given(data=st.data())
def test_the_flat_form_says_everything(cls: type[Options], data: st.DataObject) -> None:
    """Options -> flat -> YAML -> flat -> options is the identity."""
    options = data.draw(made(cls))
    flat = yaml.safe_load(yaml.safe_dump(to_dict(options), sort_keys=False))
    assert list(flat) == list(options_of(cls))
    assert unflatten(cls, flat) == options
    assert to_dict(unflatten(cls, flat)) == flat


FLAT = {
    "cfg": (
        ["sample", "--generator", "g", "--guidance", "cfg", "--guidance_scale", "4", "--guidance_interval", "[0.1,1]"],
        {"guidance": ClassifierFree(scale=4.0, interval=(0.1, 1.0)), "start": "noise"},
    ),
    "mode": (
        ["sample", "--generator", "g", "--guidance", "mode", "--start", "prototypes", "--modes=3", "--strength=1"],
        {"guidance": ModeGuidance(modes=3), "start": Prototypes(modes=3, strength=1.0)},
    ),
    "transport": (
        ["sample", "--generator", "g", "--guidance", "transport", "--group", "5", "--guidance_windows", "1", "2", "1"],
        {"guidance": TransportGuidance(group=5, guidance_windows=(1.0, 2.0, 1.0))},
    ),
    "repulsion": (
        ["sample", "--generator", "g", "--guidance=repulsion", "--repulsion_scale=1", "--coupling_interval", "0", "1"],
        {"guidance": RepulsionGuidance(scale=1.0, coupling_interval=(0.0, 1.0))},
    ),
    "windows": (
        ["sample", "--generator", "g", "--guidance", "cfg", "--guidance_windows", "0.5,4,1"],
        {"guidance": ClassifierFree(windows=(0.5, 4.0, 1.0))},
    ),
    "lora": (["finetune", "--adaptation", "lora", "--lora_rank", "4"], {"adaptation": LoRA(rank=4)}),
    "difffit": (["finetune", "--adaptation", "difffit"], {"adaptation": "difffit"}),
    "dit": (
        ["finetune", "--model.architecture", "dit", "--model.num_layers", "2", "--model.noise_schedule", "linear"],
        {"model": config.ModelConfig(architecture=DiT(num_layers=2), noise_schedule="linear")},
    ),
    "unet": (
        ["finetune", "--model.block_out_channels", "[16,32]"],
        {"model": config.ModelConfig(architecture=UNet(block_out_channels=(16, 32)))},
    ),
    "per view": (
        ["label", "--surrogate", "s", "--teacher", "t", "--mode", "per_view", "--steps", "9", "--top_k", "2"],
        {"mode": PerView(steps=9, top_k=2)},
    ),
    "patches": (
        ["refine", "--surrogate", "s", "--teacher", "t", "--patches", "3", "--blend_every", "50"],
        {"patches": Patches(count=3), "blend": Blend(every=50)},
    ),
    "active patches": (
        ["refine", "--surrogate", "s", "--teacher", "t", "--patches", "3", "--patch_places", "activation"],
        {"patches": Patches(count=3, places="activation")},
    ),
    "dream": (
        ["distill", "--method", "dm", "--selection", "representative", "--matching.interval", "50"],
        {"matching": MatchingConfig(selection=Representative(interval=50))},
    ),
    "gradient": (
        ["distill", "--method", "idc", "--matching.distance", "mse", "--matching.warm_steps", "3"],
        {"matching": MatchingConfig(objective=Gradient(distance="mse"), networks=Fresh(warm_steps=3))},
    ),
    "queue": (
        ["distill", "--method", "idm", "--matching.queue_size", "5", "--matching.class_aware", "2"],
        {"matching": MatchingConfig(objective=Features(class_aware=2.0), networks=Queue(size=5))},
    ),
    "no patches": (["refine", "--surrogate", "s", "--teacher", "t"], {"patches": None, "blend": None}),
}  # fmt: skip


@pytest.mark.parametrize("case", FLAT)
def test_flags_choose_a_kind_and_its_options(case: str) -> None:
    (command, *flags), expected = FLAT[case]
    options = parse(command, [*flags, "--output_dir", "x"])
    assert {name: getattr(options, name) for name in expected} == expected


IDLE = {
    "scale": (["sample", "--generator", "g", "--guidance_scale", "4"], "sample.guidance_scale is 4; expected 1.0: it"),
    "modes": (["sample", "--generator", "g", "--modes=3"], "guidance mode or guidance transport or start prototypes"),
    "group": (["sample", "--generator", "g", "--group", "3"], "only with guidance transport or guidance repulsion"),
    "rank": (["finetune", "--lora_rank", "4"], "finetune.lora_rank is 4; expected 16: it is used only with adap"),
    "layers": (["finetune", "--model.num_layers", "2"], "finetune.model.num_layers is 2; expected 8"),
    "views": (["label", "--surrogate", "s", "--teacher", "t", "--mode", "online", "--views", "2"], "label.views is 2"),
    "top k": (["label", "--surrogate", "s", "--teacher", "t", "--mode", "online", "--top_k", "2"], "expected None: it"),
    "blend": (["refine", "--surrogate", "s", "--teacher", "t", "--blend", "0.1"], "used only with blend_every above 0"),
    "crop": (["refine", "--surrogate", "s", "--teacher", "t", "--min_patch", "0.1"], "used only with patches above 1"),
    "interval": (["distill", "--method", "dm", "--matching.interval", "5"], "it is used only with selection repr"),
    "objective": (["distill", "--method", "dm", "--matching.distance", "mse"], "None with method dm: Gradient is an"),
    "networks": (["distill", "--method", "dm", "--matching.queue_most_steps", "4"], "expected 0 with method dm: Queue"),
    "both": (["distill", "--matching.train_on", "real", "--matching.queue_size", "4"], "used only with networks queue"),
}  # fmt: skip


@pytest.mark.parametrize("case", IDLE)
def test_an_option_of_another_kind_is_refused(case: str) -> None:
    (command, *flags), text = IDLE[case]
    with pytest.raises(ConfigError, match=re.escape(text)):
        parse(command, [*flags, "--output_dir", "x"])


def test_two_choices_cannot_disagree_on_what_they_share() -> None:
    with pytest.raises(ConfigError, match=r"sample\.modes is 4; expected 3, because prototypes and guidance"):
        config.SampleConfig(guidance=ModeGuidance(modes=3), start=Prototypes(modes=4))
    with pytest.raises(ConfigError, match=r"expected 3, because prototypes and guidance transport share"):
        config.SampleConfig(guidance=TransportGuidance(modes=3), start=Prototypes(modes=4))


@pytest.mark.parametrize("choice", [Gradient(distance="mse"), Gradient(), Queue(size=3), Features(class_aware=1.0)])
def test_a_choice_of_another_method_is_refused_with_both_names(choice: Any) -> None:
    place, method = "networks" if isinstance(choice, Queue) else "objective", "dm"
    if isinstance(choice, Features):
        method = "idc"
    with pytest.raises(ConfigError, match=f"with method {method}: {type(choice).__name__} is an option of"):
        DistillConfig(method=method, matching=MatchingConfig(**{place: choice}))


@pytest.mark.parametrize(
    ("cls", "old", "new"),
    [
        (DistillConfig, "selection", "matching=MatchingConfig(selection=...)"),
        (MatchingConfig, "interval", "selection=Representative(interval=...)"),
        (MatchingConfig, "feature_weight", "objective=Gradient(feature_weight=...)"),
        (MatchingConfig, "warm_steps", "networks=Fresh(warm_steps=...)"),
        (MatchingConfig, "queue_most_steps", "networks=Queue(most_steps=...)"),
    ],
)
def test_an_old_name_says_the_new_form(cls: type[Options], old: str, new: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"has no {old}; expected it as {new}")):
        cls(**{old: 1})


def test_help_says_which_kind_an_option_belongs_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", "--help", "all"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--views VIEWS per_image: views averaged" in text
    assert "--batch_size BATCH_SIZE per_view, online: images per batch" in text


@pytest.mark.parametrize("mode", [PerImage(views=2), PerView(), Online()], ids=lambda mode: mode.kind)
def test_a_flat_form_has_every_option_whatever_was_chosen(mode: Any) -> None:
    flat = to_dict(LabelConfig(mode=mode, flip=True))
    assert list(flat) == LabelConfig.order.split()
    assert flat["mode"] == mode.kind


def test_the_tests_own_file_is_parsed() -> None:
    options = parse("run", ["--config", str(TINY), "--output_dir", "x"])
    assert options.finetune.model.architecture == UNet(block_out_channels=(8, 16), norm_num_groups=4)
