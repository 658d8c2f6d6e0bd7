"""Label maps: what matches, what is refused, and that the messages name the way out."""

from __future__ import annotations

import pickle

import pytest

from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.class_mapping import MappingError, check_label_map, label_map_for

NAMES = [
    ("tench", "Tinca tinca", "n01"),
    ("crane", "n02"),
    ("crane", "n03"),
    ("maillot", "n04"),
    ("maillot", "tank suit", "n05"),
    ("Cardigan", "Cardigan Welsh corgi", "n06"),
    ("cardigan", "n07"),
    ("Shih-Tzu", "n08"),
    ("gas pump", "petrol pump", "n09"),
]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("tench", 0),
        ("Tinca tinca", 0),
        ("n03", 2),
        ("TENCH", 0),
        ("gas_pump", 8),
        ("Gas-Pump", 8),
        ("shih tzu", 7),
        ("Cardigan", 5),  # case tells them apart where it can
        ("cardigan", 6),
        ("maillot, tank suit", 4),  # the whole label, as some data sets name their classes
        ("tench, Tinca tinca", 0),
        ("cardigan, cardigan welsh corgi", 5),
    ],
)
def test_a_name_finds_its_condition(name: str, index: int) -> None:
    assert label_map_for((name,), NAMES) == {name: index}


def test_unsplit_names_of_conditions_are_split_at_commas() -> None:
    assert label_map_for(("Tinca tinca", "a"), [("tench, Tinca tinca",), ("a, b",)]) == {"Tinca tinca": 0, "a": 1}


def test_the_map_has_the_order_of_the_classes() -> None:
    classes = ("n05", "n03", "n01")
    assert list(label_map_for(classes, NAMES, {"n03": 1}).items()) == [("n05", 4), ("n03", 1), ("n01", 0)]


@pytest.mark.parametrize(
    ("name", "candidates"),
    [("crane", ("1 (crane, n02)", "2 (crane, n03)")), ("Maillot", ("3 (", "4 (")), ("CARDIGAN", ("5 (", "6 ("))],
)
def test_a_name_of_two_conditions_is_refused_with_both(name: str, candidates: tuple[str, str]) -> None:
    with pytest.raises(ArtifactError) as error:
        label_map_for(("tench", name), NAMES)
    for part in (repr(name), *candidates, "finetune.label_map", f'"{name}": INDEX', "0 to 8"):
        assert part in str(error.value)
    assert label_map_for(("tench", name), NAMES, {name: 2}) == {"tench": 0, name: 2}


def test_a_class_that_the_model_lacks_is_named_with_close_ones() -> None:
    with pytest.raises(ArtifactError, match=r"no 'gas pomp', but 8 \(gas pump") as error:
        label_map_for(("gas pomp", "zzz", "tench"), NAMES)
    assert "no 'zzz' and no similar name" in str(error.value)
    assert "tench" not in str(error.value)


@pytest.mark.parametrize("classes", [("gas pomp", "tench"), ("tench", "n01")])
def test_why_classes_do_not_match_is_a_value_of_its_own(classes: tuple[str, ...]) -> None:
    with pytest.raises(MappingError) as error:
        label_map_for(classes, NAMES)
    why, copy = error.value.why, pickle.loads(pickle.dumps(error.value))
    assert str(error.value).lower().startswith(f"{why.lower()}. ")
    assert "label_map" not in why
    assert (str(copy), copy.why) == (str(error.value), why)


def test_half_a_list_of_names_does_not_count() -> None:
    with pytest.raises(ArtifactError, match="no 'tench, tank suit'"):
        label_map_for(("tench, tank suit",), NAMES)


def test_two_classes_with_one_condition_are_refused() -> None:
    with pytest.raises(ArtifactError, match="0 is 'tench' and 'n01'"):
        label_map_for(("tench", "n01"), NAMES)
    with pytest.raises(ArtifactError, match="0 is 'tench' and 'mine'"):
        label_map_for(("tench", "mine"), NAMES, {"mine": 0})


def test_what_is_given_comes_before_names() -> None:
    assert label_map_for(("tench", "other"), NAMES, {"other": 3, "tench": 8}) == {"tench": 8, "other": 3}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"carp": 1}, "names carp"),
        ({"tench": 9}, "'tench': 9; .* 0 to 8"),
        ({"tench": -1}, "-1"),
        ({"tench": True}, "True"),
    ],
)
def test_a_given_map_must_fit_classes_and_conditions(given: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        label_map_for(("tench",), NAMES, given)


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        ({"a": 0}, "differ in b"),
        ({"a": 0, "b": 1, "c": 2}, "differ in c"),
        ({"a": 0, "b": 3}, "'b': 3; expected indices from 0 to 2"),
        ({"a": -1, "b": 0}, "'a': -1"),
        ({"a": "0", "b": 1}, "'a': '0'"),
        ({"a": 1, "b": 1}, "1 is 'a' and 'b'"),
    ],
)
def test_a_stored_map_that_cannot_be_is_refused(label_map: dict[str, int], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        check_label_map(("a", "b"), label_map, 3)


def test_a_sound_map_passes() -> None:
    check_label_map(("a", "b"), {"b": 0, "a": 2}, 3)
