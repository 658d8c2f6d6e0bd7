"""The commands' options: a stage's own options with those that every command takes. No torch in here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gendistill.config import (
    Continual,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    FinetuneConfig,
    Format,
    GeneratorExport,
    ImageFormat,
    LabelConfig,
    Projection,
    RefineConfig,
    SampleConfig,
    TeacherConfig,
    as_tuple,
    ipc_sizes,
    kind_of,
    require,
)
from gendistill.config.base import Count, Folders, Options
from gendistill.registry import DISTILLERS


@dataclass(frozen=True, kw_only=True)
class StageOptions(Options):
    """Options that every stage has.

    Attributes:
        output_dir: Folder to write; must be new or empty.
        seed: Seed of everything random except the data splits.
        resume_from_checkpoint: ``latest`` continues an interrupted run in output_dir.
        overwrite: Replace what an earlier run of gendistill wrote to output_dir.
        num_processes: Number of processes that you start, with `torchrun --nproc_per_node N -m gendistill ...`; the
            command is refused if another number runs. null takes any number.
    """

    output_dir: Path
    seed: int = 0
    resume_from_checkpoint: Literal["latest"] | None = None
    overwrite: bool = False
    num_processes: Count | None = None

    def check(self) -> None:
        super().check()
        both = self.overwrite and self.resume_from_checkpoint
        require(not both, "overwrite", True, "false together with resume_from_checkpoint")


@dataclass(frozen=True, kw_only=True)
class RunConfig(StageOptions):
    """All stages from pixels to report.

    Attributes:
        data: The real images.
        teacher: The teacher stage.
        finetune: The generator's training.
        sample: The sampling stage.
        refine: The refinement stage.
        evaluate: The evaluation stage.
    """

    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def samples_base(self) -> bool:
        """Whether the generator keeps the weights before its minimax phase, and sets are sampled from them."""
        return self.sample.base and self.finetune.minimax_steps > 0

    def check(self) -> None:
        super().check()
        largest, tiles = max(ipc_sizes(self.refine.ipc)), self.refine.pack**2
        wanted = f"at least refine.ipc = {largest}" + (f" times refine.pack^2 = {tiles}" if tiles > 1 else "")
        require(self.sample.pool >= largest * tiles, "sample.pool", self.sample.pool, wanted)
        beside = self.evaluate.baselines
        always = {"random", "kmeans", "full"} <= set(beside)
        require(always, "evaluate.baselines", beside, "a list that contains random, kmeans and full in a run")
        labels = self.evaluate.labels
        require(labels != "soft", "evaluate.labels", labels, "hard in a run; use `gendistill evaluate` for soft labels")
        task, other = self.evaluate.task, "classification in a run; use `gendistill evaluate` for its sets afterwards"
        require(task == "classification", "evaluate.task", kind_of(task), other)
        _need_pixels(self.refine, "refine.", "in a run, which refines pixels; `gendistill refine` can use a generator")


@dataclass(frozen=True, kw_only=True)
class RunCommand(RunConfig):
    """All stages from pixels to report.

    Attributes:
        dry_run: Check the options against the images, print how long the run will take, and stop.
    """

    dry_run: bool = False


def _need_pixels(config: RefineConfig, prefix: str, where: str) -> None:
    """Refuse a bound on latents where pixels are refined."""
    bound, default = config.latent_trust_region, RefineConfig.latent_trust_region
    require(bound == default, f"{prefix}latent_trust_region", bound, f"{default} {where}")


@dataclass(frozen=True, kw_only=True)
class TeacherCommand(StageOptions, TeacherConfig):
    """Train a teacher and collect its class statistics in one pass over the training images.

    Attributes:
        data: The real images.
    """

    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True, kw_only=True)
class FinetuneCommand(StageOptions, FinetuneConfig):
    """Train the generator: plain diffusion, then the minimax criteria.

    Attributes:
        data: The real images.
    """

    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True, kw_only=True)
class SampleCommand(StageOptions, SampleConfig):
    """Sample surrogate sets from a generator.

    Attributes:
        generator: Generator folder, Hub id, or the name of one that comes with gendistill.
        revision: Branch, tag or commit of a Hub id.
        adapter: Adapter folder (GENERATOR/adapter of a fine-tuned model) to apply to the generator that it was made
            for.
        data: The real images, for guidance mode and transport and for start prototypes.
    """

    generator: str
    revision: str | None = None
    adapter: Path | None = None
    data: DataConfig | None = None


@dataclass(frozen=True, kw_only=True)
class DistillCommand(StageOptions, DistillConfig):
    """Run a distiller on the real images.

    Attributes:
        data: The real images; null is those of the teacher, or digits without one.
        teacher: Teacher folder, or a list of them, for method wmdd; one for kmeans, herding, kcenter and coresets of
            your own, which then compare its features instead of pixels.
        statistics_cache: Folder that keeps class statistics of these images for other runs, if a teacher was trained on
            other images; null keeps none.
        validate: Train a small classifier on each set and on random real images, and compare them on validation images;
            not for coresets, which are real images.
    """

    data: DataConfig | None = None
    teacher: Folders | None = None
    statistics_cache: Path | None = None
    validate: bool = True

    def check(self) -> None:
        super().check()
        method, teachers = DISTILLERS[self.method], () if self.teacher is None else as_tuple(self.teacher)
        with_method = f"with method {self.method}"
        cache, processes, given = self.statistics_cache, self.num_processes, self.teacher and str(self.teacher)
        require(bool(teachers) or not cache, "statistics_cache", str(cache), f"None {with_method} without a teacher")
        require(method.parallel or processes in (None, 1), "num_processes", processes, f"1 {with_method}")
        require(not method.needs_teacher or bool(teachers), "teacher", given, f"a teacher folder {with_method}")
        if not method.needs_teacher:
            most = 1 if method.takes_teacher else 0
            require(len(teachers) <= most, "teacher", given, f"{'at most one' if most else 'None'} {with_method}")


@dataclass(frozen=True, kw_only=True)
class RefineCommand(StageOptions, RefineConfig):
    """Select images of a surrogate set and refine them.

    Attributes:
        surrogate: Folder or Hub id of the surrogate set to select from, such as RUN/samples/pool.
        revision: Branch, tag or commit of a Hub id.
        teacher: Teacher folder, or a list of them; several teachers are used together.
        data: The real images; null is those of the first teacher.
        generator: Generator folder, to refine in the latents of its autoencoder; null refines pixels.
        held_out: Teacher folder of another architecture, used only by the acceptance test (gate).
        statistics_cache: Folder that keeps class statistics of the first teacher's images for other runs, if another
            teacher was trained on other images; null keeps none.
        validate: Train a small classifier on each set, on its images before refinement and on random real images, and
            compare them on validation images.
    """

    surrogate: Path
    teacher: Folders
    data: DataConfig | None = None
    revision: str | None = None
    generator: Path | None = None
    held_out: Path | None = None
    statistics_cache: Path | None = None
    validate: bool = True

    def check(self) -> None:
        super().check()
        require(self.gate or self.held_out is None, "held_out", str(self.held_out), "None without gate true")
        if self.generator is None:
            _need_pixels(self, "", "without generator")


@dataclass(frozen=True, kw_only=True)
class LabelCommand(StageOptions, LabelConfig):
    """Add a teacher's soft labels to a surrogate set.

    Attributes:
        surrogate: Folder or Hub id of the surrogate set.
        teacher: Teacher folder.
        revision: Branch, tag or commit of a Hub id.
    """

    surrogate: Path
    teacher: Path
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExportCommand(Options):
    """Write surrogate sets in a format of other tools, and upload them to the Hub; or write a generator for others.

    Attributes:
        surrogate: Folder of a surrogate set or its id on the Hub, or a list: each becomes a named config, ipc-1, ....
            With format diffusers one generator.
        format: ``imagefolder``, ``parquet``, ``webdataset`` (tar files), or ``ddranking`` (one set), of sets;
            ``diffusers`` of a generator: without its variant base, with a card.
        image_format: Format of the image files, as in `gendistill sample`; null keeps those of each set. Soft labels
            stay as they are.
        output_dir: Folder to write; must be new or empty.
        overwrite: Replace what an earlier export wrote to output_dir.
        evaluation: summary.json of an evaluation of these sets; its rows are added to the card.
        push_to_hub: Dataset id on the Hub, such as owner/name, to upload the folder to.
        revision: Branch of push_to_hub to write to; it is created if it does not exist.
        private: Create a new repository of push_to_hub as a private one.
    """

    surrogate: Folders
    output_dir: Path
    format: Format | GeneratorExport = "imagefolder"
    image_format: ImageFormat | None = None
    overwrite: bool = False
    evaluation: Path | None = None
    push_to_hub: str | None = None
    revision: str | None = None
    private: bool = False

    def check(self) -> None:
        super().check()
        for name in ("revision", "private"):
            value = getattr(self, name)
            require(not value or self.push_to_hub is not None, name, value, "no value without push_to_hub")
        if isinstance(self.format, GeneratorExport):
            for name in ("evaluation", "push_to_hub", "image_format"):
                value = getattr(self, name)
                require(value is None, name, value, "null with format diffusers")
            one = len(as_tuple(self.surrogate)) == 1
            require(one, "surrogate", as_tuple(self.surrogate), "one generator with format diffusers")


@dataclass(frozen=True, kw_only=True)
class VerifyCommand(Options):
    """Check whether surrogate sets are complete and unchanged.

    Attributes:
        surrogate: Folder of a surrogate set, or a list of them.
    """

    surrogate: Folders


@dataclass(frozen=True, kw_only=True)
class ShowCommand(Options):
    """Show surrogate sets: contact sheets, a projection with the real images, copies of real images.

    Attributes:
        surrogate: Folder of a surrogate set, or a list of them.
        output_dir: Folder to write; must be new or empty.
        overwrite: Replace what an earlier `show` wrote to output_dir.
        data: The real images, needed for everything except the contact sheets; null is those of the teacher, or
            without one those that the first set was made from, if they can be read as its manifest says.
        teacher: Teacher folder, whose features are compared and projected instead of pixels.
        projection: ``pca``, or ``tsne`` (slower; shows groups, not distances).
        seed: Seed of t-SNE.
    """

    surrogate: Folders
    output_dir: Path
    overwrite: bool = False
    data: DataConfig | None = None
    teacher: Path | None = None
    projection: Projection = "pca"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(StageOptions, EvaluateConfig):
    """Train classifiers on surrogate sets and on the baselines, and test them once.

    Attributes:
        surrogate: Folder or Hub id (owner/name, owner/name/ipc-10) of a surrogate set, or any folder of class folders
            of images, or a list of them.
        revision: Branch, tag or commit of Hub ids.
        data: The real images that the baselines and the test split come from; null is those of the teacher,
            without one those that the first set was made from, or else digits.
        teacher: Teacher folder: the coreset baselines then compare its features (k-means also pixels), and baselines
            get its soft labels.
    """

    surrogate: Folders
    revision: str | None = None
    data: DataConfig | None = None
    teacher: Path | None = None

    def check(self) -> None:
        super().check()
        alone = isinstance(self.task, Continual) and self.teacher is not None
        require(not alone, "teacher", str(self.teacher), "None with task continual, which does not use it")


@dataclass(frozen=True, kw_only=True)
class ReportCommand(Options):
    """Make one page, with its numbers as JSON and CSV, of finished runs and evaluations of the same images.

    Attributes:
        run: Folder of a finished `run` or `evaluate`, or a list of them.
        output_dir: Folder to write; null writes into the folder of the only run.
        overwrite: Replace what an earlier `report` wrote to output_dir.
    """

    run: Folders
    output_dir: Path | None = None
    overwrite: bool = False

    def check(self) -> None:
        super().check()
        alone = not isinstance(self.run, list) or len(self.run) == 1
        require(alone or self.output_dir is not None, "output_dir", None, "a folder, for a report of several runs")


@dataclass(frozen=True, kw_only=True)
class ConfigCommand(Options):
    """List, show or copy the presets, options of whole runs and commands that --config takes by name.

    Attributes:
        action: ``list`` all presets, ``show`` one, or ``copy`` it to a file of yours to change.
        name: Preset to show or copy.
        file: File to write; must not exist.
    """

    action: Literal["list", "show", "copy"] = "list"
    name: str | None = None
    file: Path | None = None

    def check(self) -> None:
        super().check()
        require(self.action == "list" or self.name is not None, "name", self.name, f"a preset to {self.action}")
        require(self.action != "list" or self.name is None, "name", self.name, "no preset with list")
        require(
            (self.action == "copy") == (self.file is not None), "file", self.file, "a new file with copy, else null"
        )


@dataclass(frozen=True, kw_only=True)
class CacheCommand(Options):
    """The stores: decoded images that later commands read.

    Attributes:
        action: ``list`` shows the stores and what they take; ``clear`` removes them.
        store: Which ones to clear, by the names that ``list`` shows; without any, all.
        cache: Their folder; ``auto`` is the one that commands use by default.
    """

    action: Literal["list", "clear"] = "list"
    store: list[str] | None = None
    cache: Literal["auto"] | Path = "auto"

    def check(self) -> None:
        super().check()
        require(self.store is None or self.action == "clear", "store", self.store, "none with list")


@dataclass(frozen=True, kw_only=True)
class DoctorCommand(Options):
    """Print versions, devices, threads, caches and optional packages, for a look at a machine or a bug report."""
