"""ImageNet's names and indices, and label maps by them, against indices known from elsewhere."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from gendistill.errors import ArtifactError
from gendistill.generator.class_mapping import ClassMapping, check_label_map, imagenet_names, label_map_for

NETTE = {
    ("n01440764", "tench"): 0,
    ("n02102040", "English springer"): 217,
    ("n02979186", "cassette player"): 482,
    ("n03000684", "chain saw"): 491,
    ("n03028079", "church"): 497,
    ("n03394916", "French horn"): 566,
    ("n03417042", "garbage truck"): 569,
    ("n03425413", "gas pump"): 571,
    ("n03445777", "golf ball"): 574,
    ("n03888257", "parachute"): 701,
}
WOOF = {
    ("n02086240", "Shih-Tzu"): 155,
    ("n02087394", "Rhodesian ridgeback"): 159,
    ("n02088364", "beagle"): 162,
    ("n02089973", "English foxhound"): 167,
    ("n02093754", "Border terrier"): 182,
    ("n02096294", "Australian terrier"): 193,
    ("n02099601", "golden retriever"): 207,
    ("n02105641", "Old English sheepdog"): 229,
    ("n02111889", "Samoyed"): 258,
    ("n02115641", "dingo"): 273,
}


def wordnet(known: dict[tuple[str, str], int]) -> dict[str, int]:
    return {names[0]: index for names, index in known.items()}


def english(known: dict[tuple[str, str], int]) -> dict[str, int]:
    return {names[1]: index for names, index in known.items()}


MAPS = [wordnet(NETTE), english(NETTE), wordnet(WOOF), english(WOOF)]


def test_there_are_1000_conditions_in_wordnet_order() -> None:
    names = imagenet_names()
    ids = [n[0] for n in names]
    assert len(names) == len(set(ids)) == 1000
    assert ids == sorted(ids)
    assert names[0] == ("n01440764", "tench", "Tinca tinca")
    assert names[-1][:2] == ("n15075141", "toilet tissue")
    assert all(len(n) > 1 and all(n) for n in names)


def test_the_list_is_the_callers_own() -> None:
    imagenet_names().clear()
    assert len(imagenet_names()) == 1000


@pytest.mark.parametrize("known", MAPS)
def test_well_known_subsets_have_their_indices(known: dict[str, int]) -> None:
    classes = tuple(known)
    assert label_map_for(classes, imagenet_names()) == known
    assert label_map_for(tuple(n.upper().replace(" ", "_") for n in classes), imagenet_names()) == {
        n.upper().replace(" ", "_"): i for n, i in known.items()
    }
    check_label_map(classes, known, 1000, imagenet_names())


def test_all_conditions_are_reached_by_id_and_only_shared_first_names_are_refused() -> None:
    names = imagenet_names()
    ids = tuple(n[0] for n in names)
    assert label_map_for(ids, names) == {name: i for i, name in enumerate(ids)}
    uses = Counter(alias for n in names for alias in set(n))
    shared = {n[1] for n in names if uses[n[1]] > 1}
    assert shared == {"crane", "crayfish", "gong", "harp", "maillot", "missile", "partridge", "polecat", "tub"}
    for name in sorted({n[1] for n in names}):
        if name in shared:
            with pytest.raises(ArtifactError, match="can be"):
                label_map_for((name,), names)
    sure = tuple(n[1] for n in names if n[1] not in shared)
    assert label_map_for(sure, names) == {n[1]: i for i, n in enumerate(names) if n[1] not in shared}


def test_the_ten_folders_numbered_from_0_are_refused() -> None:
    """The trap of taking the position of the class folder for the condition."""
    by_position = {name: i for i, name in enumerate(wordnet(NETTE))}
    check_label_map(tuple(by_position), by_position, 1000)
    with pytest.raises(ArtifactError, match=r"'n02102040': 1, not 217 \(n02102040, English springer"):
        check_label_map(tuple(by_position), by_position, 1000, imagenet_names())


def test_other_names_and_other_models_are_not_compared_with_imagenet() -> None:
    check_label_map(("tench", "my cat"), {"tench": 0, "my cat": 5}, 1000, imagenet_names())
    check_label_map(("tench",), {"tench": 5}, 10, imagenet_names())
    for index in (134, 517):
        check_label_map(("crane",), {"crane": index}, 1000, imagenet_names())
    with pytest.raises(ArtifactError, match=r"134 \(.*\) or 517"):
        check_label_map(("crane",), {"crane": 5}, 1000, imagenet_names())


def unnamed(names: tuple[tuple[str, ...], ...] = ()) -> ClassMapping:
    return ClassMapping(("0", "1"), {"0": 0, "1": 1}, 1000, names)


def test_1000_conditions_without_names_are_taken_for_imagenets(caplog: pytest.LogCaptureFixture) -> None:
    mapping = unnamed().map_classes(("parachute", "n02102040"))
    assert mapping.label_map == {"parachute": 701, "n02102040": 217}
    assert mapping.condition(torch.tensor([1, 0, 1])).tolist() == [217, 701, 217]
    assert "taken for ImageNet-1k's" in caplog.text


def test_1000_conditions_of_other_names_are_not_imagenets() -> None:
    other = unnamed(tuple((f"thing {i}",) for i in range(1000)))
    assert other.imagenet_names() is None
    assert other.map_classes(("thing 7",)).label_map == {"thing 7": 7}
    with pytest.raises(ArtifactError, match="no 'parachute'"):
        other.map_classes(("parachute",))


def test_a_given_index_is_not_compared_with_imagenet() -> None:
    named = unnamed(tuple(names[1:] for names in imagenet_names()))
    assert named.map_classes(("tench",), {"tench": 5}).label_map == {"tench": 5}
    moved = ClassMapping(("tench",), {"tench": 5}, 1000, named.names)
    moved.check(trusted=("tench",))
    with pytest.raises(ArtifactError, match="'tench': 5, not 0"):
        moved.check()
