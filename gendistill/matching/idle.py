"""Options that would do nothing in a run: refused where they are given, so that no wish is dropped in silence."""

from __future__ import annotations

from collections.abc import Sequence

from gendistill.config import MatchingConfig, MatchingMethod, SelectionKind
from gendistill.errors import ConfigError
from gendistill.networks.registry import takes_option

GRADIENT: tuple[MatchingMethod, ...] = ("dc", "dsa", "idc")
ONLY: dict[str, tuple[MatchingMethod, ...]] = {  # options that the other methods have no use for
    **dict.fromkeys(("distance", "match_head", "feature_weight"), GRADIENT),
    **dict.fromkeys(("class_aware", "queue_size", "queue_interval", "queue_most_steps"), ("idm",)),
}
SELECTION = ("interval", "per_cluster", "cluster_weights", "candidates", "dimensions")
TRAINING = ("train_batch", "train_learning_rate", "cutmix")


def check_used(
    method: MatchingMethod,
    selection: SelectionKind,
    given: MatchingConfig,
    resolved: Sequence[MatchingConfig],
    presets: Sequence[MatchingConfig],
) -> None:
    """``resolved`` is what ``given`` comes to at each IPC, ``presets`` what it would with nothing given.

    Raises:
        ConfigError: an option was given that does nothing at any of them.
    """
    for name, methods in ONLY.items():
        if method not in methods and getattr(given, name):
            expected = f"null with method {method}; it is an option of {', '.join(methods)}"
            raise _refused(name, given, expected)
    network = resolved[0].network or ""
    for name in ("width", "depth"):
        usual = getattr(MatchingConfig(), name)
        if getattr(given, name) != usual and not takes_option(network, name):
            text = f"{'null' if usual is None else usual} with network {network}; it is an option of convnet"
            raise _refused(name, given, text)
    for name, why in idle(method, selection, resolved[0]).items():
        everywhere = all(name in idle(method, selection, one) for one in resolved)
        value = getattr(given, name)
        if everywhere and value is not None and value not in [getattr(one, name) for one in presets]:
            usual = getattr(MatchingConfig(), name)
            raise _refused(name, given, f"{'null' if usual is None else usual} {why}")
    if given.train_on not in (None, "none") and not any(one.train_steps or one.warm_steps for one in resolved):
        raise ConfigError("matching.train_steps is 0; expected at least 1, or no network would learn.")


def _refused(name: str, given: MatchingConfig, expected: str) -> ConfigError:
    return ConfigError(f"matching.{name} is {getattr(given, name)!r}; expected {expected}.")


def idle(method: MatchingMethod, selection: SelectionKind, config: MatchingConfig) -> dict[str, str]:
    """Options without effect in a run of this resolved config, each with the reason."""
    found: dict[str, str] = {}
    if selection == "random":
        found |= dict.fromkeys(SELECTION, "with selection random; it is an option of representative selection")
    if config.augmentation == "none":
        found["flip"] = "with matching.augmentation none: mirroring is a part of the others"
    if method == "idm":
        return found | {"warm_steps": "with method idm, whose networks learn in their queue"}
    if method == "dm" and (config.network or "").endswith("_bn"):
        found["classes_per_chunk"] = "with method dm and batch norm, which sees one class at a time"
    if config.train_on == "none" or config.inner_steps == 1:
        why = "with matching.train_on none: no network learns"
        if config.train_on != "none":
            why = "with matching.inner_steps 1: networks learn between two inner steps"
            found["train_on"] = why
        found["train_steps"] = why
    elif not config.train_steps:
        why = "with matching.train_steps 0: no network learns"
    else:
        return found
    return found if config.warm_steps else found | dict.fromkeys(TRAINING, why)
