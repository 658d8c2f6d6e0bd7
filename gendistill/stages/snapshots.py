"""What a matching run shows of its surrogate sets on the way: the sets themselves, and a contact sheet of each."""

from __future__ import annotations

import shutil
from pathlib import Path

from gendistill.data.dataset import Split
from gendistill.evaluate.report.sheets import contact_sheet
from gendistill.stages.output import partial_of
from gendistill.surrogate.set import SurrogateSet

SNAPSHOTS, PREVIEWS = "snapshots", "previews"


def save_snapshot(made: SurrogateSet, folder: Path) -> None:
    """The set of an iteration below ``folder``, with its picture."""
    save_whole(made, folder / SNAPSHOTS / _name(made) / f"ipc-{made.ipc}")
    save_preview(made, folder)


def save_preview(made: SurrogateSet, folder: Path) -> None:
    """A contact sheet of the stored images, a row a class."""
    path = folder / PREVIEWS / f"ipc-{made.ipc}" / f"{_name(made)}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [str(made.meta[key]) for key in ("method", "space") if made.meta[key]]
    title = f"{', '.join(names)}: IPC {made.ipc}, iteration {made.meta['iterations']:,}"
    part = partial_of(path)
    contact_sheet(Split(made.images, made.labels), made.classes, title).save(part, "PNG")
    part.rename(path)


def save_whole(made: SurrogateSet, target: Path) -> None:
    """Whole or not at all; one that a resumed run made before it was cut short stays."""
    if not target.exists():
        partial = partial_of(target)
        shutil.rmtree(partial, ignore_errors=True)
        made.save(partial)
        partial.rename(target)


def _name(made: SurrogateSet) -> str:
    return f"iteration-{made.meta['iterations']:06d}"
