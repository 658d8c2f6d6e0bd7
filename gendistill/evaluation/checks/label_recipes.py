"""Check, before anything is trained, that the sets have the soft labels that an evaluation needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gendistill.errors import ArtifactError, ConfigError
from gendistill.evaluation.protocols import Settings
from gendistill.networks.teacher import Teacher
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.soft_labels import SoftLabels


def check_soft_labels(surrogates: Sequence[SurrogateSet], settings: Settings, teacher: Teacher | None) -> None:
    """Check that soft rows have labels, by this teacher, with the protocol's recipe, for enough steps.

    Raises:
        ConfigError: no set is labelled, there is no teacher, or the labels of views would have no augmented row.
        ArtifactError: labels of another teacher or another recipe, or for fewer steps.
    """
    if settings.labels == "hard":
        return
    labelled = [s for s in surrogates if s.soft_labels]
    if not labelled:
        raise ConfigError(
            f"evaluate.labels is 'soft'{_by(settings)}, but no set has soft labels; make some with "
            f"`{label_command(settings, surrogates[0])}`."
        )
    if teacher is None:
        raise ConfigError(
            f"evaluate.labels is 'soft'{_by(settings)}, which needs the teacher for the baselines. Give --teacher."
        )
    for surrogate in labelled:
        soft = surrogate.soft_labels
        assert soft is not None
        if soft.teacher.get("hash") != teacher.hash():
            raise ArtifactError(
                f"The soft labels come from teacher {soft.teacher.get('hash')}, --teacher is {teacher.hash()}; "
                "expected the same."
            )
        if soft.mode != "per_image" and True not in settings.augment:
            raise ConfigError(
                f"evaluate.augment is false, but a set has {soft.mode} soft labels, which belong to augmented views. "
                "Give --augment true, --labels hard, or a set that `gendistill label --mode per_image` made."
            )
        _check_recipe(surrogate, soft, settings)
        _check_steps(surrogate, soft, settings)


def label_command(settings: Settings, surrogate: SurrogateSet) -> str:
    """The command that makes the labels that the settings need."""
    if settings.temperature is None:
        return "gendistill label"
    wanted, steps = _wanted(settings), _steps(surrogate, settings)
    values = {name: str(value).lower() if isinstance(value, bool) else f"{value:g}" for name, value in wanted.items()}
    options = " ".join(f"--{name} {value}" for name, value in values.items())
    return f"gendistill label --mode per_view {options} --steps {steps}"


def _by(settings: Settings) -> str:
    return f" by protocol {settings.protocol}" if settings.temperature is not None else ""


def _wanted(settings: Settings) -> Mapping[str, float | None]:
    """The options of `gendistill label` for a protocol with a temperature; CutMix has alpha 1 in all of them."""
    return {
        "temperature": settings.temperature,
        "min_crop": settings.min_crop,
        "flip": settings.flip,
        "cutmix": settings.cutmix,
        "batch_size": settings.batch_size,
    }


def _check_recipe(surrogate: SurrogateSet, soft: SoftLabels, settings: Settings) -> None:
    if settings.temperature is None:
        return
    views = soft.views
    found = {"temperature": soft.temperature, "min_crop": views.min_crop, "flip": views.flip, "cutmix": views.cutmix}
    found["batch_size"] = views.batch_size
    others = [f"{name} {found[name]} for {value}" for name, value in _wanted(settings).items() if found[name] != value]
    if soft.mode == "per_image":
        others.insert(0, "mode per_image for per_view or online")
    if others:
        raise ArtifactError(
            f"Protocol {settings.protocol} needs other soft labels than the set at IPC {surrogate.ipc} has: it has "
            f"{', '.join(others)}. Make them with `{label_command(settings, surrogate)}`."
        )


def _check_steps(surrogate: SurrogateSet, soft: SoftLabels, settings: Settings) -> None:
    steps = _steps(surrogate, settings)
    if soft.steps is None or soft.steps >= steps:
        return
    length = "steps" if settings.steps is not None else "epochs"
    shorter = f"evaluate with --steps {soft.steps}" if settings.steps is not None else "evaluate it for fewer --epochs"
    raise ArtifactError(
        f"evaluate.{length} is {steps if length == 'steps' else f'{settings.epochs}, which are {steps} steps'}, but a "
        f"set has soft labels for {soft.steps} steps; label it with --steps {steps} or {shorter}."
    )


def _steps(surrogate: SurrogateSet, settings: Settings) -> int:
    return settings.length(len(surrogate.split), len(surrogate.classes))[0]
