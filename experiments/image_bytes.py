"""Which set trains best in so many bytes, when every image may be stored as PNG or in a lossy format?

    python -m experiments.image_bytes --data ../shared/data/cifar10 --max_per_class 1000 --validation --width 32 \\
        --teacher_steps 400 --steps 200 --judge_steps 200 --ipc 1 10 --formats png webp:20 avif:30 --seeds 0 --runs 3 \\
        --flip --shift 4 --output image-bytes.jsonl

Machine: one thread of an AMD EPYC (avx2, avx512f, avx512_bf16, no amx), two cores shared with other work, no GPU. It
took 13 minutes of a processor.

Result (docs/results.md#accuracy-against-bytes): with one seed, WebP of quality 20 takes at most a tenth of the bytes of
PNG and costs at most 1 point, but 4 for one packed image a class. Packed images are best at both numbers of images a
class: 28.0 % in 1.9 kB and 43.9 % in 23 kB of WebP, where one PNG image a class has 32.1 %.

Every seed trains one teacher and makes each set once: random photographs, k-means of pixels, and ours. Ours is selected
from a pool of five times as many photographs (or of samples, with --generator), refined, and matched if a class has at
least 5 decoded images; it is stored whole, or with four smaller images in each one. Every set is then stored in every
format, and the same training runs judge the images that its files hold. A test follows the last step of each training:
on test images, or with --validation on validation images, which train nothing. Finished seeds are read from the output
file. The picture goes beside it, as .svg.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import gendistill as gd
from experiments.curves import Line, Panel, svg
from experiments.refinement import POOL, over_seeds, sampled, table_options, teacher_of, training

PACKS = {"ours": 1, "ours, packed": 2}
LOSSLESS = ("png", "webp_lossless")
LOSSY: dict[str, type[gd.Webp] | type[gd.Jpeg] | type[gd.Avif]] = {"webp": gd.Webp, "jpeg": gd.Jpeg, "avif": gd.Avif}


def sets(
    data: gd.RealData, teacher: gd.Teacher, generator: gd.Generator | None, args: argparse.Namespace, seed: int
) -> Iterator[tuple[str, gd.SurrogateSet]]:
    """(kind, set) at every IPC, as PNG."""
    config = gd.RefineConfig(steps=args.steps, flip=args.flip, match_iterations=args.match_iterations)
    space, least = gd.ground_space([teacher], data, config), min(data.train.counts(len(data.classes)))
    for ipc in args.ipc:
        yield "random", gd.distill(data, "random", ipc, seed=seed)
        yield "k-means (pixels)", gd.distill(data, "kmeans", ipc, seed=seed)
        for kind, pack in PACKS.items():
            wanted = POOL * ipc * pack**2
            if generator is None:
                pool = gd.distill(data, "random", min(wanted, least), seed=seed + 1000)
            else:
                pool = sampled(generator, wanted, data, seed)
            packed = replace(config, pack=pack)
            yield kind, gd.refine_set(pool, teacher, data, ipc, packed, seed=seed, space=space)[1]


def one_seed(data: gd.RealData, generator: gd.Generator | None, args: argparse.Namespace, seed: int) -> list[dict]:
    """Rows of one synthesis seed: every set in every format."""
    teacher = teacher_of(data, args, seed)
    made = [
        (kind, one.stored_as(image_format))
        for kind, one in sets(data, teacher, generator, args, seed)
        for image_format in args.formats
    ]
    config = gd.EvaluateConfig(
        network="convnet",
        runs=args.runs,
        steps=args.judge_steps,
        labels="hard",
        baselines=("random",),
        describe=False,
        **training(args),
    )
    rows = gd.evaluate(data, [one for _, one in made], config, seed=seed).rows
    accuracy = {row["set"]: row["accuracy"] for row in rows}  # formats that keep every pixel share a row
    return [
        {
            "seed": seed,
            "kind": kind,
            "ipc": one.ipc,
            "format": str(one.coding),
            "bytes": one.image_bytes,
            "accuracy": accuracy[one.content_hash()],
        }
        for kind, one in made
    ]


@dataclass(frozen=True)
class Point:
    """One kind of set at one IPC in one format: means over the seeds, and the spread of accuracies over them, in %."""

    kind: str
    ipc: int
    format: str
    bytes: float
    accuracy: float
    spread: float | None  # None of one seed


def points(rows: list[dict]) -> list[Point]:
    """Sorted by bytes."""
    by_point: dict[tuple[str, int, str], list[dict]] = {}
    for row in rows:
        by_point.setdefault((row["kind"], row["ipc"], row["format"]), []).append(row)
    found = []
    for which, own in by_point.items():
        values = 100 * np.array([np.mean(row["accuracy"]) for row in own])
        spread = float(values.std(ddof=1)) if len(values) > 1 else None
        found.append(Point(*which, float(np.mean([row["bytes"] for row in own])), float(values.mean()), spread))
    return sorted(found, key=lambda point: (point.bytes, -point.accuracy))


def front(by_bytes: list[Point]) -> list[Point]:
    """Those that are better than every point of at most as many bytes (the Pareto front)."""
    found: list[Point] = []
    for point in by_bytes:
        if not found or point.accuracy > found[-1].accuracy:
            found.append(point)
    return found


def table(rows: list[dict]) -> str:
    by_bytes = points(rows)
    best = front(by_bytes)
    lines = [f"{'set':<18} {'IPC':>4} {'format':<20} {'bytes':>11} {'accuracy %':>14}  front"]
    for one in by_bytes:
        spread = "(1 seed)" if one.spread is None else f"± {one.spread:3.1f}"
        place = f"{one.kind:<18} {one.ipc:>4} {one.format:<20} {one.bytes:>11,.0f}"
        lines.append(f"{place} {one.accuracy:5.1f} {spread:<8}  {'*' if one in best else ''}".rstrip())
    return "\n".join(lines)


def picture(rows: list[dict]) -> str:
    """Accuracy against bytes; a colour is a kind of set, a mark a format."""
    by_bytes = points(rows)
    kinds, formats = (list(dict.fromkeys(row[name] for row in rows)) for name in ("kind", "format"))
    lines = []
    for kind in kinds:
        for image_format in formats:
            own = [one for one in by_bytes if (one.kind, one.format) == (kind, image_format)]
            drawn = [(float(np.log10(one.bytes)), one.accuracy, one.spread or 0.0) for one in own]
            style = (kinds.index(kind), formats.index(image_format))
            lines.append(Line(f"{kind}: {image_format}", drawn, style))
    return svg([Panel("Accuracy against bytes", "log10 of the bytes of the images", "accuracy %", lines)], columns=1)


def image_format(text: str) -> str | gd.Webp | gd.Jpeg | gd.Avif:
    """NAME, or NAME:QUALITY of a lossy format."""
    if text in LOSSLESS:
        return text
    name, colon, quality = text.partition(":")
    if name not in LOSSY:
        known = f"{', '.join(LOSSLESS)}, or NAME:QUALITY with {', '.join(LOSSY)}"
        raise argparse.ArgumentTypeError(f"{text!r}; expected {known}, such as webp:20")
    if not colon:
        return LOSSY[name]()
    if not quality.isdecimal() or not 1 <= int(quality) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a quality from 1 to 100, such as {name}:20")
    return LOSSY[name](quality=int(quality))


def main() -> None:
    parser = table_options(__doc__)
    parser.set_defaults(ipc=[1, 10, 50])
    parser.add_argument("--generator", type=Path, help="folder; ours then starts from its samples")
    default = [image_format(text) for text in ("png", "webp:20", "webp:50", "avif:50")]
    parser.add_argument("--formats", type=image_format, nargs="+", default=default, metavar="NAME[:QUALITY]")
    parser.add_argument("--match_iterations", type=int, default=100)
    parser.add_argument("--validation", action="store_true", help="test on three in ten training images")
    args = parser.parse_args()
    if args.validation and args.generator:
        parser.error("--validation with --generator: it may have seen the validation images; leave one of them out.")
    found = over_seeds(args, one_seed)
    print(table(found))
    args.output.with_suffix(".svg").write_text(picture(found), encoding="utf-8")


if __name__ == "__main__":
    main()
