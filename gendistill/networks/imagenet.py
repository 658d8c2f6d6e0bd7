"""Names of the ImageNet-1k classes (ILSVRC 2012) by index, from timm's tables."""

from __future__ import annotations

from functools import cache


@cache
def _table() -> tuple[tuple[str, ...], ...]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(
        (wordnet, *(lemma.strip() for lemma in info.label_name_to_description(wordnet).split(",")))
        for wordnet in info.label_names()
    )


def imagenet_names() -> list[tuple[str, ...]]:
    """(WordNet id, lemma, ...) of each of the 1000 classes, such as ("n01440764", "tench", "Tinca tinca").

    The order is that of the sorted WordNet ids, which torchvision, timm and the DiT checkpoints share. Lemmas are not
    unique: cranes are birds (134) and machines (517).
    """
    return list(_table())
