"""Options of the real images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from gendistill.config.base import Options, Range, require
from gendistill.errors import ConfigError, did_you_mean
from gendistill.registry import SOURCES

LISTS = (".csv", ".tsv", ".jsonl")
Fraction = Annotated[float, Range(0, 0.9, open_low=True, open_high=True)]


@dataclass(frozen=True, kw_only=True)
class DataConfig(Options):
    """The real images.

    Attributes:
        name: ``digits`` (built in), a folder (docs/data.md lists the layouts), a list of images (a CSV, TSV or JSON
            Lines file with columns ``path`` and ``label``), or a Hub id.
        train: What is the training split: a folder or file pattern below ``name``, or a split of a Hub dataset; ``.``
            takes everything. Null finds it by its name.
        test: The same of the test split; ``none`` holds it out from the training split.
        validation: The same of the validation split; null holds it out from the training split.
        image_size: Side of the square images in pixels; null keeps the common size of the images.
        test_fraction: Share of each class held out as test split if the source has none.
        validation_fraction: Share of each class, of what the test split leaves, taken from the training split as
            validation split; it is used neither for training nor for testing.
        split_seed: Seed of these two splits; it is separate from the run's seed, so that runs have the same splits.
        max_per_class: Keep at most this number of training images of a class (null: all), for quick tries. A
            validation split that is held out is taken from these; the test split stays as it is without this option.
        classes: ``all`` refuses a class without training images; ``present`` leaves such classes out.
        image_column: Column of the images in parquet files and datasets; null takes the only one.
        label_column: Column of the labels, of whole numbers, of names or of type ClassLabel; null takes the only one
            of type ClassLabel, or else ``label``.
        class_names: File with the names of the classes, for labels that are numbers: a name a line, or JSON, a list of
            names or an object of names by label.
        value_range: Black and white of images with more than 8 bits a pixel, for all of them; null takes 0 and 65535
            for 16 bits without sign, and refuses other types.
        decoding: ``fast`` decodes JPEG files at a half, a quarter or an eighth of their size where that is still twice
            ``image_size`` or more, which changes pixels by less than one level in 255 on average; ``exact`` decodes all
            of them whole.
        cache: Folder of stores, where the decoded images of a collection are kept for later commands; ``auto`` is
            ``data`` in GENDISTILL_CACHE, or else in the user's cache folder, and keeps collections that take more than
            a moment to decode; null keeps none.
        in_memory_gib: Decoded images that are kept in no store may take this much memory, in GiB, and those of a store
            move to a GPU as a whole if they take less; null is a quarter of the free memory.
        revision: Branch, tag or commit of a Hub id.
        licence: Licence of the images, in the spelling of the Hub, for the cards of sets made from them; null uses the
            licence of a Hub dataset.
    """

    section: ClassVar[str] = "data"
    short: ClassVar[str | None] = "name"

    name: str = "digits"
    train: str | None = None
    test: str | None = None
    validation: str | None = None
    image_size: Annotated[int, Range(4, 8192)] | None = None
    test_fraction: Fraction = 0.25
    validation_fraction: Fraction = 0.1
    split_seed: int = 0
    max_per_class: Annotated[int, Range(4, 1_000_000_000)] | None = None
    classes: Literal["all", "present"] = "all"
    image_column: str | None = None
    label_column: str | None = None
    class_names: Path | None = None
    value_range: tuple[float, float] | None = None
    decoding: Literal["fast", "exact"] = "fast"
    cache: Literal["auto"] | Path | None = "auto"
    in_memory_gib: Annotated[float, Range(0, open_low=True)] | None = None
    revision: str | None = None
    licence: str | None = None

    @property
    def folder(self) -> Path | None:
        """The name as a folder, where it is one and no source is called so, such as ``digits``."""
        path, source = Path(self.name).expanduser(), self.name.partition(":")[0]
        taken = source in SOURCES and SOURCES[source].matches is None
        return path if path.is_dir() and not taken else None

    @property
    def place(self) -> Path | None:
        """The folder or list of images on this machine, where the name is one."""
        return self.folder or (Path(self.name).expanduser() if is_list(self.name) else None)

    def check(self) -> None:
        super().check()
        require(bool(self.name), "data.name", self.name, "digits, a folder or a Hub id")
        if self.value_range is not None:
            low, high = self.value_range
            require(low < high, "data.value_range", self.value_range, "black and white, the smaller number first")
        if isinstance(self.cache, Path) and self.reads(self.cache):
            raise ConfigError(
                f"data.cache is {str(self.cache)!r}, in the folder of the images {self.name}, which a store would "
                "change. Give a folder outside it."
            )

    def reads(self, place: Path) -> bool:
        """Whether what lies at a place is among what is read: below the folder, or below its splits where all are named
        folders."""
        if self.folder is None:
            return False
        named = [name for name in (self.train, self.validation, self.test) if name not in (None, "none")]
        splits = [self.folder / Path(name).expanduser() for name in named if name is not None]
        alone = self.train is not None and self.test is not None and all(path.is_dir() for path in splits)
        return any(is_visible_in(place, path) for path in (splits if alone else [self.folder]))

    def problem(self) -> str:
        """Why no source can read the name, as far as that shows without reading; empty if one may."""
        plain = [name for name in SOURCES.names() if SOURCES[name].matches is None]
        guess = did_you_mean(self.name, plain)
        return "" if self._is_known() or (could_be_hub_id(self.name) and not guess) else unreadable(self.name) + guess

    @property
    def on_hub(self) -> bool:
        """Whether the images can only be on the Hub."""
        return not self._is_known() and could_be_hub_id(self.name)

    def _is_known(self) -> bool:
        """Whether the name is a folder, or a source's own, as far as that shows without reading."""
        own = any(SOURCES[name].matches is not None for name in SOURCES.added())
        plain = [name for name in SOURCES.names() if SOURCES[name].matches is None]
        own = own or is_list(self.name)
        return own or self.name.partition(":")[0] in plain or Path(self.name).expanduser().is_dir()


def is_visible_in(place: Path, folder: Path) -> bool:
    """Whether a place lies in a folder, or is it, and no name on the way is hidden."""
    place, folder = place.expanduser().resolve(), folder.resolve()
    return place.is_relative_to(folder) and not any(name.startswith(".") for name in place.relative_to(folder).parts)


def is_list(name: str) -> bool:
    """Whether a name is a file of paths and labels."""
    path = Path(name).expanduser()
    return path.suffix.lower() in LISTS and path.is_file()


def unreadable(name: str) -> str:
    """The message for a name that no source reads."""
    own = "".join(f", {source}:..." for source in SOURCES.added())
    if Path(name).expanduser().exists():
        return (
            f"data.name is {name!r}, a file; expected 'digits', a folder, a list ({', '.join(LISTS)}) or a Hub id{own}."
        )
    return (
        f"data.name is {name!r}, but there is no such folder. Give 'digits', an existing folder of class folders or of "
        f"parquet files, or a Hub id such as 'uoft-cs/cifar10'{own}."
    )


def could_be_hub_id(name: str) -> bool:
    """Whether the Hub can have a dataset of this name."""
    path = name.startswith((".", "/", "~")) or Path(name).expanduser().exists()
    return not path and name.count("/") <= 1
