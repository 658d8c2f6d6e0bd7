"""Which part of refinement pays: select, barycenter, batch norm or all, from generated images, real ones and noise.

    python -m experiments.refinement --data ../shared/data/cifar10 --max_per_class 1000 --network convnet_bn \\
        --width 64 --teacher_steps 800 --steps 200 --judge_steps 200 --ipc 1 10 --seeds 0 1 2 --runs 3 --soft \\
        --flip --shift 4 --compile --mixed_precision auto --pixel_weight 3 --generator GENERATOR \\
        --output out.jsonl --sets sets

Machine: two cores of an AMD EPYC (AVX512_BF16), no GPU. Time not recorded.

Result (docs/results.md#gain-of-each-part): atoms pay most, at IPC 1 nearly alone (real images 15.4 to 24.1 %);
selection pays 5.5 points at IPC 10; batch norm helps generated images alone. With all terms and ``pixel_weight`` 0.3,
generated images reach 24.0 ± 0.7 % at IPC 1 and 37.8 ± 1.0 % at IPC 10, random real ones 16.5 and 31.1 %.

Every synthesis seed trains its own teacher, draws its own pool and judges every set with the same training runs, beside
random and k-means. Finished seeds are read from the output file, so an interrupted table goes on. Test images are read
once a training, after its last step; the settings of the variants are fixed below, before any of it is seen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

import gendistill as gd

POOL = 5  # images of the pool for each one that is wanted
ZERO = {"feature_weight": 0.0, "batch_norm_weight": 0.0, "cross_entropy_weight": 0.0}
VARIANTS = {  # what is added to the selection
    "select + atoms": {**ZERO, "feature_weight": 1.0},
    "select + BN": {**ZERO, "batch_norm_weight": 1.0},
    "select + atoms + BN": {**ZERO, "feature_weight": 1.0, "batch_norm_weight": 1.0},
    "select + atoms + CE": {**ZERO, "feature_weight": 1.0, "cross_entropy_weight": 0.1},
    "select + all": {},
    "select + all, trust region 0.1": {"trust_region": 0.1},
    "select + all, features alone": {"pixel_weight": 0.0},
    "select + all, pixel weight 0.3": {"pixel_weight": 0.3},
    "select + all, features alone, trust region 0.1": {"pixel_weight": 0.0, "trust_region": 0.1},
    "select + all, no trust region": {"trust_region": 2.0, "learning_rate": 0.1},
    "select + all, crops from half the area": {"min_crop": 0.5},
    "select + all, changes of 16 px": {"delta_size": 16},
    "select + all, blended every 50 steps": {"blend": gd.Blend(every=50)},
    "select + all, gate": {"gate": True},
    "select + all, free weights": {"weights": "free"},
}
UNSELECTED = "all without select"

SOFT = {"real: raw", "real: select", "real: select + all", "real: select + all, features alone", "noise: wmdd"}
SOFT |= {name.replace("real", "generated") for name in SOFT}


def variants(
    pool: gd.SurrogateSet,
    start: str,
    teacher: gd.Teacher,
    data: gd.RealData,
    ipc: int,
    config: gd.RefineConfig,
    seed: int,
    wanted: Callable[[str], bool],
) -> Iterator[tuple[str, gd.SurrogateSet]]:
    """(name, set) of every variant from one pool that is ``wanted`` by its name."""
    yield f"{start}: raw", pool.prefix(ipc)
    weights = {config.pixel_weight, 0.3, 0.0}
    spaces = {weight: gd.ground_space([teacher], data, replace(config, pixel_weight=weight)) for weight in weights}
    selected = {
        weight: gd.refine_set(pool, teacher, data, ipc, replace(config, steps=0), seed=seed, space=space)[0]
        for weight, space in spaces.items()
    }
    yield f"{start}: select", selected[config.pixel_weight]
    yield f"{start}: select, features alone", selected[0.0]
    for name, changes in VARIANTS.items():
        if not wanted(f"{start}: {name}"):
            continue
        changed = replace(config, select=False, **changes)
        weight = changed.pixel_weight
        refined = gd.refine_set(selected[weight], teacher, data, ipc, changed, seed=seed, space=spaces[weight])[1]
        yield f"{start}: {name}", refined
    if wanted(f"{start}: {UNSELECTED}"):
        plain = replace(config, select=False)
        space = spaces[config.pixel_weight]
        yield f"{start}: {UNSELECTED}", gd.refine_set(pool, teacher, data, ipc, plain, seed=seed, space=space)[1]


def sets(
    data: gd.RealData, teacher: gd.Teacher, generator: gd.Generator | None, args: argparse.Namespace, seed: int
) -> Iterator[tuple[str, gd.SurrogateSet]]:
    config = gd.RefineConfig(ipc=1, steps=args.steps, flip=args.flip, pixel_weight=args.pixel_weight)

    def wanted(name: str) -> bool:
        return name.split(": ")[1] not in args.without and (not args.only or name in args.only)

    for ipc in args.ipc:
        pools = {}
        if "real" in args.starts:
            pools["real"] = gd.distill(data, "random", POOL * ipc, seed=seed + 1000)
        if generator is not None:
            pools["generated"] = sampled(generator, POOL * ipc, data, seed)
        for start, pool in pools.items():
            made = variants(pool, start, teacher, data, ipc, config, seed, wanted)
            yield from ((name, one) for name, one in made if wanted(name))
        if "noise" in args.starts and wanted("noise: wmdd"):
            options = {"start": "noise", "pixel_weight": 0.0}  # as the tables were measured
            noise = gd.WmddConfig(steps=args.steps, learning_rate=0.1, flip=args.flip, **options)
            yield "noise: wmdd", gd.wmdd(data, teacher, ipc, noise, seed=seed)


def sampled(generator: gd.Generator, ipc: int, data: gd.RealData, seed: int) -> gd.SurrogateSet:
    """Samples, as of these images: a generator may have seen more than --max_per_class keeps, of the same split."""
    drawn = gd.sample_set(generator, ipc, gd.SampleConfig(), seed=seed)
    return replace(drawn, meta=drawn.meta | {"data": data.describe()})


def one_seed(data: gd.RealData, generator: gd.Generator | None, args: argparse.Namespace, seed: int) -> list[dict]:
    """Rows of one synthesis seed, each with the variant's name; hard labels, and soft ones for ``SOFT``."""
    teacher = teacher_of(data, args, seed)
    made = made_once(lambda: sets(data, teacher, generator, args, seed), args, seed)
    return judged(made, data, teacher, args, seed)


Named = list[tuple[str, gd.SurrogateSet]]


def made_once(make: Callable[[], Iterable[tuple[str, gd.SurrogateSet]]], args: argparse.Namespace, seed: int) -> Named:
    """The named sets of a seed: those in ``--sets``, where a run was cut short after it had made them, or new ones."""
    folder = args.sets / f"seed-{seed}" if args.sets else None
    if folder and (folder / "sets.json").exists():
        places = json.loads((folder / "sets.json").read_text())
        return [(name, gd.SurrogateSet.load(folder / place)) for place, name in places]
    made = list(make())
    if folder:
        keep(made, folder)
    return made


def keep(made: Named, folder: Path) -> None:
    places = [f"ipc-{one.ipc}/{name.replace(': ', '-').replace(' ', '-')}" for name, one in made]
    for place, (_, one) in zip(places, made, strict=True):
        one.save(folder / place)
    (folder / "sets.json").write_text(json.dumps([[p, name] for p, (name, _) in zip(places, made, strict=True)]))


def training(args: argparse.Namespace) -> dict:
    """What teacher and judge are trained with."""
    names = ("width", "flip", "shift", "mixed_precision", "compile")
    return {name: getattr(args, name) for name in names}


def teacher_of(data: gd.RealData, args: argparse.Namespace, seed: int) -> gd.Teacher:
    config = gd.TeacherConfig(network=args.network, steps=args.teacher_steps, **training(args))
    teacher = gd.train_teacher(data, config, seed=seed)
    print(f"seed {seed}: teacher {teacher.meta['accuracy']}", flush=True)
    return teacher


def judged(made: Named, data: gd.RealData, teacher: gd.Teacher, args: argparse.Namespace, seed: int) -> list[dict]:
    """Rows of these named sets and of the baselines; soft ones as well for those in ``SOFT``, where asked."""
    if args.soft:
        labels = gd.LabelConfig(mode=gd.Online(cutmix=1.0), min_crop=0.5, flip=args.flip)
        made = [(n, gd.label_set(one, teacher, labels, seed=seed) if n in SOFT else one) for n, one in made]
    config = gd.EvaluateConfig(
        network="convnet",
        runs=args.runs,
        steps=args.judge_steps,
        labels="soft" if args.soft else "hard",
        baselines=("random", "kmeans", "full"),
        describe=False,
        **training(args),
    )
    rows = gd.evaluate(data, [one for _, one in made], config, seed=seed, teacher=teacher).rows
    if args.soft == "alone":
        rows = [row for row in rows if row["labels"] != "hard"]
    names: dict[str, list[str]] = {}  # of the same images, too, such as those of a gate that refused nothing
    for name, one in made:
        for known in {one.content_hash(), replace(one, soft_labels=None).content_hash()}:
            names.setdefault(known, []).append(name)
    columns = ("ipc", "labels", "accuracy", "ci95_vs_random")
    return [
        {"seed": seed, "name": name, **{k: row[k] for k in columns}, "bytes": row["bytes"]["images"]}
        for row in rows
        for name in names.get(row["set"], [baseline(row)])
    ]


def baseline(row: dict) -> str:
    return f"{row['method']} ({row['space']})" if row["space"] else row["method"]


def table(rows: list[dict]) -> str:
    """The figures as aligned text."""
    lines = [f"{'IPC':>4} {'labels':<7} {'set':<46} {'accuracy %':>13}  {'over random':>13}"]
    lines += [f"{i or '':>4} {labels:<7} {name:<46} {mean}  {gain}" for i, labels, name, mean, gain in figures(rows)]
    return "\n".join(lines)


def figures(rows: list[dict]) -> Iterator[tuple[int, str, str, str, str]]:
    """(IPC, labels, name, accuracy, gain): the mean over synthesis seeds and runs, and its gain over random, paired by
    seed; both with their spread over the seeds."""
    for ipc, labels, name in sorted({(row["ipc"] or 0, row["labels"], row["name"]) for row in rows}):
        own = {
            r["seed"]: np.mean(r["accuracy"])
            for r in rows
            if (r["ipc"] or 0, r["labels"], r["name"]) == (ipc, labels, name)
        }
        random = {
            r["seed"]: np.mean(r["accuracy"])
            for r in rows
            if (r["ipc"] or 0, r["labels"], r["name"]) == (ipc, labels, "random")
        }
        values = 100 * np.array(list(own.values()))
        gains = 100 * np.array([own[s] - random[s] for s in own if s in random])
        gain = (
            f"{gains.mean():+5.1f}" + (f" ± {gains.std(ddof=1):3.1f}" if len(gains) > 1 else "") if len(gains) else ""
        )
        spread = f"± {values.std(ddof=1):3.1f}" if len(values) > 1 else "(1 seed)"
        yield ipc, labels, name, f"{values.mean():7.1f} {spread}", f"{gain:>13}"


def options(description: str | None, *, generators: bool = False) -> argparse.ArgumentParser:
    """What every table of refined sets takes; several named generators, or one."""
    parser = table_options(description)
    if generators:
        parser.add_argument("--generators", nargs="*", default=[], metavar="NAME=FOLDER")
    else:
        parser.add_argument("--generator", type=Path)
        parser.add_argument("--starts", nargs="*", default=["real", "noise"], help="beside generated images")
    parser.add_argument("--pixel_weight", type=float, default=0.3, help="of the variants whose names give no other")
    parser.add_argument(
        "--soft", nargs="?", const="beside", choices=["beside", "alone"], help="rows of soft labels too, or alone"
    )
    parser.add_argument("--sets", type=Path, help="folder that keeps the sets themselves")
    return parser


def table_options(description: str | None) -> argparse.ArgumentParser:
    """Data, teacher, judge and seeds of a table whose rows ``over_seeds`` makes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--max_per_class", type=int)
    parser.add_argument("--network", default="convnet_bn")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--teacher_steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--judge_steps", type=int, default=200)
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--shift", type=int, default=0)
    parser.add_argument("--mixed_precision", default="no")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    return parser


def over_seeds(args: argparse.Namespace, seed_rows: Callable[..., list[dict]]) -> list[dict]:
    """The rows of every seed by ``seed_rows(data, generator, args, seed)``; those in the output file are not made
    again."""
    same_options(args)
    data = data_of(args)
    one = getattr(args, "generator", None)
    generator = gd.Generator.from_pretrained(str(one)) if one else None
    for seed in args.seeds:
        if seed not in {row["seed"] for row in read(args.output)}:
            with gd.show_progress():
                found = seed_rows(data, generator, args, seed)
            with args.output.open("a") as file:
                file.write("".join(json.dumps(row) + "\n" for row in found))
    return read(args.output)


def same_options(args: argparse.Namespace) -> None:
    """Keep the options beside the output file, whose finished seeds are not made again, and refuse to go on with
    others."""
    path, free = args.output.with_suffix(".options.json"), {"output", "sets", "seeds"}
    wanted = json.loads(json.dumps({k: v for k, v in vars(args).items() if k not in free}, default=str))
    known = json.loads(path.read_text()) if path.exists() else wanted
    changed = [f"--{k} {known.get(k)}, not {v}" for k, v in wanted.items() if known.get(k) != v]
    if changed:
        raise SystemExit(f"{args.output} was made with {'; '.join(changed)}; give another --output.")
    path.write_text(json.dumps(wanted, indent=1))


def data_of(args: argparse.Namespace) -> gd.RealData:
    """The images of ``--data``; with ``--validation`` tests see three in ten training images, and no test image."""
    own = {"name": args.data, "image_size": args.image_size, "max_per_class": args.max_per_class}
    if not getattr(args, "validation", False):
        return gd.load_data(gd.DataConfig(**own))
    data = gd.load_data(gd.DataConfig(**own, validation_fraction=0.3))
    return replace(data, test=data.validation)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--without", nargs="*", default=[], help="variants to leave out, of every start")
    parser.add_argument("--only", nargs="*", help="rows to make, such as 'real: select + all'; all if left out")
    print(table(over_seeds(parser.parse_args(), one_seed)))


if __name__ == "__main__":
    main()
