"""Sample stage: generator folder -> surrogate sets ``ipc-K``, with ``pool`` and ``base/ipc-K`` where asked for."""

from __future__ import annotations

from pathlib import Path

from gendistill import runtime
from gendistill.config import SampleConfig, stage_options, to_dict
from gendistill.config.commands import SampleCommand
from gendistill.data.dataset import RealData
from gendistill.data.sources import read_data
from gendistill.generator.generator import BASE, Generator
from gendistill.generator.surrogate_sets import IMAGES, check_images, write_sets
from gendistill.report.terminal import describe_sets
from gendistill.stages import Outcome
from gendistill.stages.folder import finished, stage_folder, stage_settings, training_time
from gendistill.stages.output import output
from gendistill.surrogate.image_formats import Coding


def run_stage(
    source: str | Path,
    config: SampleConfig,
    target: Path,
    *,
    seed: int,
    data: RealData | None = None,
    revision: str | None = None,
    adapter: Path | None = None,
    log_path: Path | None = None,
) -> Path:
    """Write ``target`` unless it is there already, made with the same settings; several processes share the work."""
    generator = Generator.from_pretrained(source, revision=revision)
    generator.meta |= training_time(source)
    if adapter is not None:
        generator = generator.with_adapter(adapter)
    if config.class_names is not None:
        generator = generator.map_classes(config.class_names)
    check_images(generator, config, data)
    Coding.of(config.image_format, generator.image_shape[-1])
    with_base = config.base and generator.has_variant(BASE) and adapter is None
    real = data.fingerprint() if data and config.modes is not None else None
    options = {k: v for k, v in to_dict(config).items() if k != "batch_size"}  # which never changes an image
    settings = stage_settings(options, seed, generator=generator.hash(), data=real)
    if finished(target, "sample", settings):
        return target
    if with_base:
        Generator.from_pretrained(source, BASE, revision=revision)  # a damaged one is refused before the work
    with stage_folder(target, "sample", settings, keep_partial=True, log_path=log_path) as folder:
        write_sets(generator, folder, config, data=data, seed=seed)
        if with_base:
            base = Generator.from_pretrained(source, BASE, revision=revision)
            base = base.for_classes(generator.classes, generator.label_map)
            base.meta |= training_time(source)
            write_sets(base, folder, config, data=data, seed=seed, stage="base")
        folder.temporary = (IMAGES,)
    return target


def main(command: SampleCommand) -> Outcome:
    runtime.check_processes(command.num_processes)
    config = stage_options(command, SampleConfig)
    source = Path(command.generator).expanduser()
    inputs = (source if source.is_dir() else None, command.adapter, command.data.folder if command.data else None)
    with output(command, *inputs):
        data = read_data(command.data) if command.data and config.modes is not None else None
        run_stage(
            command.generator,
            config,
            command.output_dir,
            seed=command.seed,
            data=data,
            revision=command.revision,
            adapter=command.adapter,
        )
    return Outcome(*describe_sets(command.output_dir)) if runtime.processes().is_main_process else Outcome("")
