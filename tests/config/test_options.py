"""Every option of every options dataclass: values of other types, names and ranges are refused, in Python too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest

from gendistill import config
from gendistill.config import commands
from gendistill.config.base import Options, Range, arms, conform, hints, option_name, read_words
from gendistill.errors import ConfigError


def classes() -> list[type[Options]]:
    """Every options class there is."""
    found: dict[str, type[Options]] = {}
    stack = [Options]
    while stack:
        for one in stack.pop().__subclasses__():
            if one.__module__.startswith("gendistill."):
                found[one.__qualname__] = one
            stack.append(one)
    return [found[name] for name in sorted(found)]


REQUIRED: dict[str, Any] = {
    "output_dir": Path("x"), "generator": "g", "surrogate": Path("s"), "teacher": Path("t"), "run": Path("r"),
    "scale": 2.0, "every": 3, "count": 2, "source": "timm:x",
}  # fmt: skip


def made(cls: type[Options], **changes: Any) -> Options:
    required = {f.name: REQUIRED[f.name] for f in fields(cls) if f.name in REQUIRED and is_required(f)}
    return cls(**{**required, **changes})


def is_required(field: Any) -> bool:
    return repr(field.default) == repr(field.default_factory)


def bad_values(hint: Any) -> Iterator[Any]:
    """Values that a type does not take."""
    if get_origin(hint) is Annotated:
        inner, *extras = get_args(hint)
        yield from bad_values(inner)
        for bound in (extra for extra in extras if isinstance(extra, Range)):
            if bound.low > -1e9:
                yield bound.low if bound.open_low else bound.low - 1
            if bound.high < 1e9:
                yield bound.high if bound.open_high else bound.high + 1
    elif get_origin(hint) is Literal:
        yield from ("no such name", 17, object())
    elif get_origin(hint) in (tuple, list):
        yield from ([bad] for bad in bad_values(get_args(hint)[0]))
        if get_origin(hint) is tuple and get_args(hint)[-1] is not Ellipsis:
            yield [0.5]
    elif len(arms(hint)) > 1:
        for arm in arms(hint):
            yield from bad_values(arm)
    else:
        yield from (object(), [object()])
        yield from {int: (1.5, True, "1"), float: (True, "1.0"), bool: (1, "true"), str: (3,)}.get(hint, ())


def taken(hint: Any, value: Any) -> bool:
    try:
        conform(hint, value)
    except TypeError:
        return False
    return True


OPTIONS = [(cls, name) for cls in classes() for name in hints(cls)]


@pytest.mark.parametrize(("cls", "name"), OPTIONS, ids=[f"{cls.__name__}-{name}" for cls, name in OPTIONS])
def test_what_an_option_does_not_take_is_refused_by_its_name(cls: type[Options], name: str) -> None:
    hint = hints(cls)[name]
    refused = [value for value in bad_values(hint) if not taken(hint, value)]  # by one arm of a union, not by another
    assert refused
    for value in refused:
        with pytest.raises(ConfigError) as error:
            made(cls, **{name: value})
        message = str(error.value)
        assert message.startswith(f"{option_name(cls, name)} is "), message
        assert "; expected " in message, message
        assert "object at" not in message.split("; expected ")[1]


@pytest.mark.parametrize(("cls", "name"), OPTIONS, ids=[f"{cls.__name__}-{name}" for cls, name in OPTIONS])
def test_an_absurd_whole_number_is_refused(cls: type[Options], name: str) -> None:
    if name not in ("seed", "split_seed") and taken(hints(cls)[name], 8) and not taken(hints(cls)[name], 8.5):
        with pytest.raises(ConfigError, match="expected"):
            made(cls, **{name: 10**15})


@pytest.mark.parametrize(("cls", "name"), OPTIONS, ids=[f"{cls.__name__}-{name}" for cls, name in OPTIONS])
def test_a_number_that_overflows_in_fp32_is_refused(cls: type[Options], name: str) -> None:
    if any(taken(hints(cls)[name], value) for value in (0.75, 8.5)):
        with pytest.raises(ConfigError, match="expected"):
            made(cls, **{name: 1e39})


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_an_unknown_option_is_refused(cls: type[Options]) -> None:
    with pytest.raises(ConfigError, match=rf"{cls.__name__} has no nonsense; expected"):
        made(cls, nonsense=1)


MESSAGES = {
    "a name": (lambda: config.RefineConfig(feature_loss="typo"), "refine.feature_loss is 'typo'; expected one of sq"),
    "a kind": (
        lambda: config.SampleConfig(guidance="cgf"),
        "sample.guidance is 'cgf'; expected none or ClassifierFree(...) or ModeGuidance(...) or "
        "TransportGuidance(...) or RepulsionGuidance(...).",
    ),
    "a kind with options": (lambda: config.ModelConfig(architecture="unett"), "expected UNet(...) or DiT(...)."),
    "the flat form": (
        lambda: config.SampleConfig(guidance="cfg", guidance_scale=4),
        "SampleConfig has no guidance_scale; expected it as guidance=ClassifierFree(scale=...).",
    ),
    "a range": (lambda: config.DataConfig(test_fraction=1.5), "data.test_fraction is 1.5; expected a number more than"),
    "a number beyond fp32": (
        lambda: config.MatchingConfig(learning_rate=1e39),
        "learning_rate is 1e+39; expected None or a number more than 0, up to 1e+38 in size.",
    ),
    "a long one": (lambda: config.TeacherConfig(steps=10**400), f"steps is 1{299 * '0'}...; expected a whole number"),
    "an optional one": (lambda: config.DataConfig(image_size=2), "is 2; expected None or a whole number from 4 to"),
    "an element": (lambda: config.SampleConfig(ipc=(1, 0)), "ipc is (1, 0); expected a whole number from 1 to 100000"),
    "a bool": (lambda: config.TeacherConfig(steps=True), "steps is True; expected a whole number from 1 to 1000000000"),
    "a command's own": (
        lambda: commands.TeacherCommand(output_dir=3, steps=2),
        "output_dir is 3; expected a path.",
    ),
    "of a member": (
        lambda: config.ClassifierFree(scale=0.5),
        "sample.guidance_scale is 0.5; expected a number of at least 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MESSAGES)
def test_messages_say_what_was_got_and_what_was_expected(case: str) -> None:
    make, text = MESSAGES[case]
    with pytest.raises(ConfigError) as error:
        make()
    assert text in str(error.value)


def test_lists_become_tuples_and_text_becomes_a_path() -> None:
    assert config.SampleConfig(ipc=[1, 5]).ipc == (1, 5)
    assert config.SampleConfig(guidance=config.ClassifierFree(scale=4, interval=[0, 1])).guidance.interval == (0, 1)
    assert commands.VerifyCommand(surrogate=["a", "b"]).surrogate == [Path("a"), Path("b")]
    assert config.EvaluateConfig(baseline_cache="auto").baseline_cache == "auto"
    assert config.EvaluateConfig(baseline_cache="here").baseline_cache == Path("here")


def test_a_path_in_the_home_folder_is_the_same_for_every_option() -> None:
    home = Path.home()
    assert commands.VerifyCommand(surrogate=["~/a", Path("~/b")]).surrogate == [home / "a", home / "b"]
    assert config.EvaluateConfig(baseline_cache="~/c").baseline_cache == home / "c"
    assert config.MatchingConfig(start="~/set").start == home / "set"
    options = commands.LabelCommand(surrogate="~/a", teacher="~/t", output_dir="~/out")
    assert (options.surrogate, options.teacher, options.output_dir) == (home / "a", home / "t", home / "out")
    assert repr(config.TeacherConfig(learning_rate=1).learning_rate) == "1.0"


@pytest.mark.parametrize("words", [("01",), ("010", "0x10", "3"), ("1_0",), ("01,2",)])
def test_names_that_begin_like_numbers_stay_what_they_are(words: tuple[str, ...]) -> None:
    found = config.SampleConfig(classes=read_words(hints(config.SampleConfig)["classes"], words))
    assert found.class_names == tuple(",".join(words).split(","))
