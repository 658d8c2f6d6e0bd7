"""A generator for other people: one network in the type that is asked for, and README.md, which says what it is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from gendistill.config import GeneratorExport
from gendistill.errors import ConfigError
from gendistill.generator.generator import Generator
from gendistill.generator.loading import GeneratorMeta
from gendistill.generator.networks import Network, kind_of
from gendistill.io import write_text
from gendistill.surrogate.card.card import CARD
from gendistill.surrogate.card.facts import SHOWN, block, cell, plain, terms
from gendistill.surrogate.hub_datasets import without_local_paths
from gendistill.surrogate.manifest import Manifest

PHASES = {"base": "plain diffusion", "minimax": "minimax criteria"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export_generator(generator: Generator, folder: Path, config: GeneratorExport, *, name: str) -> None:
    """Write the network's weights in ``config.dtype``, without variants, and a card; no file names a local folder.

    The autoencoder, where there is one, stays as it is: its hash belongs to the latents that the network has learned.

    Args:
        generator: Stays as it is; ``meta`` may have ``training_seconds`` and ``recipe``, which the card then shows.
        folder: Where to write.
        config: Type of the weights, licence of the images, and results for the card.
        name: What the card calls the folder.

    Raises:
        ConfigError: a weight is too large for the type.
    """
    meta = cast("GeneratorMeta", without_local_paths(generator.meta))
    if config.data_licence is not None:
        meta["data"] = {**meta.get("data", {}), "licence": config.data_licence}
    stored = replace(generator, network=_cast(generator.network, config.dtype), meta=meta)
    stored.save_pretrained(folder)
    write_text(folder / CARD, card(stored, config, name), errors="replace")


def _cast(network: Network, dtype: str) -> Network:
    """A copy with its parameters in another type; buffers, which are computed, stay in fp32."""
    network = deepcopy(network)
    for key, parameter in network.named_parameters():
        parameter.data = parameter.data.to(DTYPES[dtype])
        if not torch.isfinite(parameter).all():
            raise ConfigError(f"dtype is {dtype!r}, but weights of {key} are too large for it; expected bf16 or fp32.")
    return network


def card(generator: Generator, config: GeneratorExport, name: str) -> str:
    """README.md of a generator: what it draws, how it was trained, under which licences, and how to sample."""
    meta, (_, height, width) = generator.meta, generator.image_shape
    front = {
        **terms([cast("Manifest", {"licence": meta.get("licence"), "data": meta.get("data", {})})]).front_matter,
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["dataset-distillation", "class-conditional", "gendistill"],
    }
    rows = [f"| {key} | {value} |" for key, value in _rows(generator, config) if value]
    python = (
        f"import gendistill as gd\n\nimages = gd.sample_set(gd.Generator.from_pretrained({json.dumps(name)}), ipc=10)"
    )
    colour = "grey" if generator.image_shape[0] == 1 else "colour"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {plain(name)}",
        f"A class-conditional diffusion model of {colour} images of {height} x {width} pixels. It is a pipeline folder "
        "of diffusers, from which gendistill samples surrogate sets.",
        "\n".join(["| | |", "|---|---|", *rows]),
        "## Sample",
        block(f"gendistill sample {shlex.quote(name)} --ipc 10 --pool 0 --output_dir samples", "sh"),
        block(python, "python"),
        *(["## Results", config.results.strip()] if config.results else []),
    ]
    return "\n\n".join(parts) + "\n"


def _rows(generator: Generator, config: GeneratorExport) -> Iterator[tuple[str, str]]:
    """The table of the card; an empty value is not known."""
    meta, classes = generator.meta, generator.classes
    data, parents = meta.get("data", {}), meta.get("parents", {})
    names = ", ".join(map(cell, classes[:SHOWN])) + (" ..." if len(classes) > SHOWN else "")
    millions = sum(one.numel() for one in generator.network.parameters()) / 1e6
    images = sum(data.get("counts", {}).get("train", []))
    pretrained = parents.get("pretrained")
    seconds = [f"{PHASES.get(phase, phase)} {value:,.0f}" for phase, value in meta.get("training_seconds", {}).items()]
    yield "classes", f"{len(classes):,}: {names}"
    yield "network", f"{kind_of(generator.network)}, {millions:.2f} M parameters"
    yield "weights", f"stored in {config.dtype}, read in fp32"
    yield "codec", generator.codec.name
    yield "base model", cell(pretrained) if pretrained else ""
    yield "data", cell(data["name"]) if data.get("name") else ""
    yield "training images", f"{images:,}" if images else ""
    yield from _phases(meta)
    yield "seconds of training", ", ".join(seconds)
    yield "licence of the weights", cell(meta.get("licence") or "unknown")
    yield "licence of the images", cell(data.get("licence") or "unknown")


def _phases(meta: GeneratorMeta) -> Iterator[tuple[str, str]]:
    """What each phase of the training did, as far as the recipe is known."""
    recipe: dict[str, Any] = meta.get("recipe", {})
    optimizers = meta.get("optimizers", {})
    for phase, steps in meta.get("steps", {}).items():
        said = f"{steps:,} steps" if steps else ""
        if steps and recipe:
            said += f" of {recipe['batch_size']} images, {recipe['rate_schedule']} schedule"
        if steps and phase in optimizers:
            used = optimizers[phase]
            said += f", {used['name']}, learning rate {used['learning_rate']:g}"
        if steps and recipe and phase == "minimax":
            criteria = recipe["minimax"]
            said += f", representativeness {criteria['representativeness']:g}, diversity {criteria['diversity']:g}"
        yield PHASES[phase], said
