"""How long a whole run will take, from a few real steps of its networks before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gendistill import cpu_speed, runtime
from gendistill.config import BESIDE, Compile, Precision, RefineConfig, TeacherConfig, ipc_sizes, kind_of
from gendistill.config.commands import RunConfig
from gendistill.data.dataset import RealData
from gendistill.evaluation.baselines import RANDOM_DRAWS
from gendistill.evaluation.coded_photographs import LADDER
from gendistill.evaluation.protocols import resolve_protocol
from gendistill.generator.adaptation import adapt
from gendistill.generator.batch_source import CachedLatents
from gendistill.generator.codec import PixelCodec
from gendistill.generator.finetuning import with_mode
from gendistill.generator.generator import Generator
from gendistill.generator.latent_cache import real_latents
from gendistill.generator.sampler import denoised_images, requests_for, sample
from gendistill.generator.trainer import train_generator
from gendistill.matching.methods import real_flop
from gendistill.networks.factories import build_network
from gendistill.networks.teacher_training import teacher_network
from gendistill.networks.training import forward_flop, train_classifier
from gendistill.refine.refiner import matching_after
from gendistill.surrogate.image_files import recode
from gendistill.surrogate.image_formats import Coding

ENCODED = 16  # images, where there is an autoencoder or a lossy format
TIMED = 3  # steps; the first one, which is slower, does not count
COMPILED, COMPILATION = 1 / 2, 20.0  # a compiled bf16 step in eager fp32 ones; seconds (``runtime.execution_mode``)


@runtime.own_accelerate_state()
def estimate_run(config: RunConfig, data: RealData, generator: Generator) -> dict[str, float]:
    """Seconds of every stage, as a rule within a factor of two.

    Steps of the teacher, the generator, sampling and the evaluated classifiers are timed and multiplied by their
    number; refinement and matching are counted in floating-point operations at the teacher's pace. Not in it: reading
    the images, the picks of coresets, measures of the sets, and what earlier runs left in the caches.

    Several processes call this alike; the others' shares of the work are taken to be as fast as this one's.

    Args:
        config: The options of all stages.
        data: The real images.
        generator: What the run would start from. Its steps change it: give one that is not needed afterwards.
    """
    options = config.teacher
    shape = {"channels": data.channels, "image_size": data.image_size, "classes": len(data.classes)}
    published = options.pretrained
    timed = replace(options, pretrained=replace(published, tune="all")) if published else options  # with its backward
    teacher, _ = teacher_network(timed, classes=data.classes, channels=data.channels, image_size=data.image_size)
    flop = (1 + runtime.BACKWARD) * forward_flop(teacher, data.channels, data.image_size)  # of an image in training
    training = _training(
        teacher, data, options.batch_size, options.steps, options.mixed_precision, options.compile, flop
    )
    pace = training / options.steps / options.batch_size  # seconds an image
    found = {
        "teacher": training * _share(options) + len(data.train) * pace / (1 + runtime.BACKWARD),
        "generator": _generator(config, data, generator),
        "samples": _samples(config, generator),
        "refinement": pace / flop * _refinement_flop(config, data, flop) + _coding(config.refine, data),
        "evaluation": _evaluation(config, data, shape),
    }
    shares = runtime.processes().num_processes  # the generator's steps were timed with all processes
    return {stage: seconds if stage == "generator" else seconds / shares for stage, seconds in found.items()}


def _share(options: TeacherConfig) -> float:
    """Of the time that training all weights takes: none without training, a forward pass where the head trains."""
    frozen = options.pretrained is not None and options.pretrained.tune == "head"
    return options.trains / (1 + runtime.BACKWARD if frozen else 1)


def _training(
    network: nn.Module,
    data: RealData,
    batch_size: int,
    steps: int,
    mixed_precision: Precision,
    compile: Compile,
    flop: float,
) -> float:
    """Seconds of so many ``steps``, at ``flop`` an image, of one training or of all that share what is compiled."""
    device = runtime.device()
    loop = train_classifier(
        network, data.train, steps=TIMED, batch_size=batch_size, learning_rate=0.0, weight_decay=0.0, device=device
    )
    seconds = _seconds_a_step(record["loss"] for record in loop)
    mode = runtime.execution_mode(mixed_precision, compile, device, flop * steps * batch_size, cpu_speed.kept)
    share, compilation = _compiled(mode.bf16) if mode.compile else (1.0, 0.0)
    return compilation + share * seconds * steps


def _compiled(bf16: bool) -> tuple[float, float]:
    """The time of a compiled step in eager fp32 ones, and seconds of compiling."""
    return COMPILED if bf16 else 1 / cpu_speed.FASTER, COMPILATION


def _generator(config: RunConfig, data: RealData, generator: Generator) -> float:
    """Encoding, where there is an autoencoder, and both phases."""
    options = config.finetune
    codec, few = generator.codec.to(runtime.device()), data.train
    if not isinstance(codec, PixelCodec):
        few = data.train.take(torch.arange(min(len(data.train), ENCODED)))
    start = time.perf_counter()
    latents = real_latents(codec, few, fingerprint="", flip=options.flip)
    seconds = (time.perf_counter() - start) * len(data.train) / len(few)
    if isinstance(latents, CachedLatents):  # each class gets one of the few
        index = torch.arange(len(data.classes))
        mean, stds = latents.means[0][index % len(few)], latents.stds
        latents = CachedLatents(index, (mean,), (stds[0][index % len(few)],) if stds else None)
    mode = with_mode(options, generator, cpu_speed.kept)
    share, compilation = _compiled(mode.mixed_precision == "bf16") if mode.compile is True else (1.0, 0.0)
    timed = replace(
        options, base_steps=TIMED, minimax_steps=TIMED, preview_steps=0, compile=False, checkpointing_steps=TIMED + 1
    )
    phases = [("minimax", options.minimax_steps)]
    if options.pretrained is None:
        phases.insert(0, ("base", options.base_steps))
    for phase, steps in phases:
        if not steps:
            continue
        how: Any = kind_of(options.adaptation) if phase == "minimax" else "full"
        adapted = adapt(generator.network, how, base_hash="")
        precision = "no" if mode.compile is True else mode.mixed_precision
        accelerator = runtime.make_accelerator(precision, options.gradient_accumulation_steps)
        loop = train_generator(
            generator,
            latents,
            timed,
            accelerator=accelerator,
            adapted=adapted,
            criteria=options.minimax if phase == "minimax" else None,
        )
        seconds += compilation + share * steps * _seconds_a_step(record["denoising"] for record in loop)
        generator.network = adapted.merged()
    return min(seconds, 60 * options.max_minutes) if options.max_minutes else seconds


def _seconds_a_step(losses: Iterator[Tensor]) -> float:
    """Mean over all steps after the first; reading a loss waits for the device."""
    next(losses).item()
    start = time.perf_counter()
    steps = len([loss.item() for loss in losses])
    return (time.perf_counter() - start) / steps


def _samples(config: RunConfig, generator: Generator) -> float:
    """The largest set and, where there is a minimax phase, the largest set before it."""
    options, classes = config.sample, len(generator.classes)
    largest = max(ipc_sizes(options.ipc))
    counts = (max(largest, options.pool), largest if config.samples_base else 0)
    images = sum(denoised_images(requests_for(classes, count), options.group) for count in counts)
    requests = requests_for(classes, -(-options.batch_size // classes))[: options.batch_size]
    few = replace(options, num_inference_steps=TIMED, guidance="none", start="noise", compile=False)
    start = time.perf_counter()
    for _ in sample(generator.to(runtime.device()), requests, few):
        pass
    seconds = (time.perf_counter() - start) / TIMED / len(requests)
    passes = 1 + options.classifier_free.share if options.classifier_free else 1
    return seconds * options.num_inference_steps * passes * images


def _refinement_flop(config: RunConfig, data: RealData, flop: float) -> float:
    """Of the optimisation, which passes gradients to the images alone, and of matching."""
    options, sizes = config.refine, ipc_sizes(config.refine.ipc)
    found = flop * sum(sizes) * options.pack**2 * len(data.classes) * options.steps
    for run in (matching_after(ipc, data, options) for ipc in sizes if options.is_matched(ipc)):
        found += real_flop(run.config, run.iterations, data) * (COMPILED if run.mode(cpu_speed.kept).compile else 1)
    return found


def _coding(options: RefineConfig, data: RealData) -> float:
    """Seconds in which steps code the images, where they do; measured on a few real ones."""
    coding = Coding.of_steps(options.step_format, data.image_size)
    if coding is None:
        return 0.0
    few = data.train.take(torch.arange(min(len(data.train), ENCODED))).pixels
    start = time.perf_counter()
    recode(few, coding)
    seconds = (time.perf_counter() - start) / len(few)
    sizes, steps = ipc_sizes(options.ipc), options.steps if options.pack == 1 else 0
    times = sum(ipc * (steps + options.match_iterations * options.is_matched(ipc)) for ipc in sizes)
    return seconds * len(data.classes) * times


def _evaluation(config: RunConfig, data: RealData, shape: dict[str, int]) -> float:
    """Every row's trainings; random images have a draw a run."""
    settings = resolve_protocol(config.evaluate)
    coresets = len(set(config.evaluate.baselines) - {"random", *BESIDE}) + ("kmeans" in config.evaluate.baselines)
    sampled, refined = ipc_sizes(config.sample.ipc), ipc_sizes(config.refine.ipc)
    tiles = config.refine.pack**2
    made = [*refined * 2] if tiles == 1 else [ipc * tiles for ipc in refined]  # selected and refined, or packed alone
    ours = [*sampled * (2 if config.samples_base else 1), *made]
    sizes = {*sampled, *refined}  # of the stored sets
    baselines = [ipc for ipc in sizes for _ in range(coresets)]
    runs = settings.runs * len(settings.augment)
    rows = [(ipc * len(data.classes), runs) for ipc in (*ours, *baselines)]
    rows += [(ipc * len(data.classes), max(RANDOM_DRAWS, settings.runs) * len(settings.augment)) for ipc in sizes]
    if "bytes" in config.evaluate.baselines and tiles > 1:
        draws = max(RANDOM_DRAWS, settings.runs) * len(settings.augment)
        rows += [(ipc * len(data.classes), draws) for ipc in refined]
    if "coded" in config.evaluate.baselines:
        tried = len(LADDER) + 1
        rows += [(ipc * len(data.classes), tried + max(RANDOM_DRAWS, settings.runs)) for ipc in ours]
    seconds = 0.0
    for name in settings.network:
        network = build_network(name, width=settings.width, depth=settings.depth, **shape)
        flop = (1 + runtime.BACKWARD) * forward_flop(network, data.channels, data.image_size)
        steps = sum(settings.length(images, len(data.classes))[0] * count for images, count in rows)
        steps += settings.length(len(data.train), len(data.classes), full=True)[0] * runs
        trained = _training(network, data, settings.batch_size, steps, settings.mixed_precision, settings.compile, flop)
        trainings = sum(count for _, count in rows) + runs
        tested = trainings * len(data.test) / (1 + runtime.BACKWARD) / settings.batch_size * trained / steps
        seconds += trained + tested
    return seconds


def format_estimate(seconds: dict[str, float]) -> str:
    """One line: the stages' minutes and their sum."""
    parts = ", ".join(f"{stage} {_minutes(value)}" for stage, value in seconds.items())
    device = runtime.device()
    where = f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else str(device)
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    return f"this will take about {_minutes(sum(seconds.values()))} on {where}: {parts}"


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
