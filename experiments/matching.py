"""Accuracy of the matching family against iterations and seconds: selections, starts, methods; then other networks.

    C="--data ../shared/data/cifar10 --max_per_class 1000 --ipc 10 --runs 3 --flip --shift 4 --compile \\
      --mixed_precision auto --matching_width 64 --real_batch 128 --output out.jsonl --sets sets"
    python -m experiments.matching $C --methods dm  --iterations 150 --every 50 --interval 10
    python -m experiments.matching $C --methods idc --iterations 4 --every 2 --inner_steps 10 --train_steps 8
    python -m experiments.matching $C --methods idm --iterations 48 --every 16 --train_steps 2

Machine: two cores of an AMD EPYC (AVX512_BF16), no GPU; DREAM's own rule, 16 real images and idm from clusters on a
Xeon with AMX. Beside other work a distillation took 79 to 131 s; the time of the whole table was not recorded.

Result (docs/results.md#does-dreams-selection-help): the clustered start gains 2 points with dm (43.5 ± 0.7 %) and 1
with idc (43.4 ± 0.7 %). Representative selection is within 0.5 points of random selection in every row; its
clustering every 10 steps takes a third of dm's time.

Every (method, selection, start, seed) is distilled once and judged at every snapshot with the same training runs,
beside random, k-means and full data. The output file gets a line for each when all of it is done and is read again, so
an interrupted table goes on; below ``--sets`` a distillation goes on from its checkpoint and a judge from the trainings
it has finished. Networks of ``--cross`` judge the last sets alone. Test images are read once a training, after its last
step. Seconds are of the whole distillation: start, clustering, compiling, matching and network training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import gendistill as gd
from experiments.curves import Line, Panel, svg
from experiments.refinement import baseline, read

BASELINES = ("random", "kmeans (pixels)", "full")
WHICH = ("method", "selection", "start")


def distilled(data: gd.RealData, args: argparse.Namespace, which: dict[str, Any]) -> list[gd.SurrogateSet]:
    """Start, snapshots and the finished set, in order."""
    matching = gd.MatchingConfig(
        start=which["start"],
        width=args.matching_width,
        flip=args.flip and which["method"] != "dc",  # it augments nothing
        mixed_precision=args.mixed_precision,
        compile=args.compile,
        snapshot_every=args.every,
        checkpoint_every=args.every,
        real_batch=args.real_batch,
        train_steps=args.train_steps if which["method"] != "dm" else None,
        inner_steps=args.inner_steps if which["method"] == "idc" else None,
        selection=gd.Representative(**rule(args)) if which["selection"] == "representative" else "random",
    )
    config = gd.DistillConfig(
        method=which["method"],
        ipc=args.ipc,
        iterations=args.iterations,
        matching=matching,
    )
    name = "-".join(str(value) for value in which.values())
    target = args.sets / f"ipc-{args.ipc}" / name
    own = f"ipc-{args.ipc}"
    if not (target / own).exists():
        target.mkdir(parents=True, exist_ok=True)
        work = gd.WorkFolder(target, target / "log.jsonl")
        made = gd.distill(data, which["method"], args.ipc, config=config, seed=which["seed"], folder=work)
        made.save(target / "unfinished")
        (target / "unfinished").rename(target / own)
        shutil.rmtree(target / "checkpoints", ignore_errors=True)
    return [gd.SurrogateSet.load(place / own) for place in (*sorted((target / "snapshots").iterdir()), target)]


def rule(args: argparse.Namespace) -> dict[str, Any]:
    """How representative images are chosen, where that is not the default's."""
    names = ("interval", "cluster_weights", "candidates", "dimensions")
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def judged(
    data: gd.RealData, sets: Sequence[gd.SurrogateSet], args: argparse.Namespace, network: str, seed: int
) -> dict[str, Any]:
    """Accuracies by run of the sets, with iterations and seconds, and of the baselines, which a seed's runs share."""
    config = gd.EvaluateConfig(
        network=network,
        runs=args.runs,
        steps=args.judge_steps,
        width=args.width if network == "convnet" else None,
        flip=args.flip,
        shift=args.shift,
        mixed_precision=args.mixed_precision,
        compile=args.compile,
        baselines=("random", "kmeans", "full"),
        describe=False,
    )
    key = hashlib.sha256(f"{config} {data.fingerprint()}".encode()).hexdigest()[:8]
    place = args.sets / f"judge-{key}" / f"seed-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    rows = gd.evaluate(data, sets, config, seed=seed, folder=gd.WorkFolder(place, place / "log.jsonl")).rows
    own = {row["set"]: row["accuracy"] for row in rows if row["set"]}
    points = [
        {"iteration": s.meta["iterations"], "seconds": s.meta["seconds"], "accuracy": own[s.content_hash()]}
        for s in sets
    ]
    return {"points": points, "baselines": {baseline(r): r["accuracy"] for r in rows if not r["set"]}}


def lines(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A line of every combination and network; those in the output file are not made again."""
    names = ("max_per_class", "image_size", "ipc", "runs", "width", "judge_steps", "shift", "flip", "compile")
    names += ("mixed_precision", "matching_width", "real_batch", "train_steps", "iterations", "every", "inner_steps")
    settings = {"data": Path(args.data).name, **{name: getattr(args, name) for name in names}, **rule(args)}
    for line in read(args.output):
        if line["method"] in args.methods and line["settings"] != settings:
            raise SystemExit(f"{args.output} has {line['method']} with {line['settings']}; give another --output.")
    data = gd.load_data(gd.DataConfig(name=args.data, image_size=args.image_size, max_per_class=args.max_per_class))
    for network, seed, *choices in product(
        dict.fromkeys(["convnet", *args.cross]), args.seeds, args.methods, args.selections, args.starts
    ):
        which = {**dict(zip(WHICH, choices, strict=True)), "seed": seed}
        line = {"network": network, **which}
        if any(line.items() <= done.items() for done in read(args.output)):
            continue
        with gd.show_progress():
            sets = distilled(data, args, which)
            found = judged(data, sets if network == "convnet" else sets[-1:], args, network, seed)
        with args.output.open("a") as file:
            file.write(json.dumps({**line, "settings": settings, **found}) + "\n")
    return read(args.output)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds, of fractions, in per cent."""
    found = 100 * np.array(values)
    return float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else 0.0


def groups(lines: Sequence[dict[str, Any]], network: str) -> dict[tuple[str, ...], dict[int, dict[str, Any]]]:
    """(method, selection, start) -> seed -> line, of one network."""
    found: dict[tuple[str, ...], dict[int, dict[str, Any]]] = {}
    for line in lines:
        if line["network"] == network:
            found.setdefault(tuple(line[name] for name in WHICH), {})[line["seed"]] = line
    return dict(sorted(found.items()))


def figures(own: dict[int, dict[str, Any]]) -> Iterator[tuple[int, float, tuple[float, float], tuple[float, float]]]:
    """(iteration, seconds, accuracy, gain over random paired by seed), means and spreads over seeds."""
    for at in zip(*(line["points"] for line in own.values()), strict=True):
        values = [float(np.mean(point["accuracy"])) for point in at]
        random = [float(np.mean(line["baselines"]["random"])) for line in own.values()]
        seconds = float(np.mean([point["seconds"]["distill"] for point in at]))
        yield at[0]["iteration"], seconds, spread(values), spread([v - r for v, r in zip(values, random, strict=True)])


def of_baselines(found: dict[tuple[str, ...], dict[int, dict[str, Any]]]) -> dict[str, tuple[float, float]]:
    by_seed = {seed: line["baselines"] for own in found.values() for seed, line in own.items()}
    return {name: spread([float(np.mean(one[name])) for one in by_seed.values()]) for name in BASELINES}


def table(lines: Sequence[dict[str, Any]]) -> str:
    found = groups(lines, "convnet")
    head = f"{'method':<7}{'selection':<16}{'start':<11}{'iteration':>9}{'seconds':>9}  {'select %':>8}"
    rows = [f"{head}  {'accuracy %':>11}  {'over random':>12}"]
    for (method, selection, start), own in found.items():
        last = [line["points"][-1]["seconds"] for line in own.values()]
        share = 100 * float(np.mean([one["select"] / one["distill"] for one in last]))
        for iteration, seconds, accuracy, gain in figures(own):
            place = f"{method:<7}{selection:<16}{start:<11}{iteration:>9}{seconds:>9.0f}  {share:>8.1f}"
            rows.append(f"{place}  {accuracy[0]:5.1f} ± {accuracy[1]:3.1f}  {gain[0]:+6.1f} ± {gain[1]:3.1f}")
    rows += [f"{name:<64}{mean:5.1f} ± {std:3.1f}" for name, (mean, std) in of_baselines(found).items()]
    return "\n".join(rows)


def cross_table(lines: Sequence[dict[str, Any]]) -> str:
    """The last sets under every network, over the seeds that all of them have judged."""
    networks = list(dict.fromkeys(line["network"] for line in lines))
    by_network = {network: groups(lines, network) for network in networks}
    rows = [f"{'last set':<36}" + "".join(f"{name:>20}" for name in networks)]
    for key in by_network["convnet"]:
        cells = [spread_of_last(by_network[network].get(key, {})) for network in networks]
        rows.append(f"{' '.join(key):<36}" + "".join(f"{cell:>20}" for cell in cells))
    for name in BASELINES:
        cells = ["{:.1f} ± {:.1f}".format(*of_baselines(found)[name]) for found in by_network.values()]
        rows.append(f"{name:<36}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(rows)


def spread_of_last(own: dict[int, dict[str, Any]]) -> str:
    values = [float(np.mean(line["points"][-1]["accuracy"])) for line in own.values()]
    return "{:.1f} ± {:.1f} ({})".format(*spread(values), len(values)) if values else ""


def picture(lines: Sequence[dict[str, Any]]) -> str:
    """A row a method: accuracy against iterations, and against seconds."""
    found, panels = groups(lines, "convnet"), []
    for method in dict.fromkeys(key[0] for key in found):
        own = {key: group for key, group in found.items() if key[0] == method}
        levels = [(name, mean) for name, (mean, _) in of_baselines(own).items() if name != "full"]
        for place, unit in enumerate(("iterations", "seconds")):
            curves = []
            for (_, selection, start), group in own.items():
                points = [(float(row[place]), *row[2]) for row in figures(group)]
                curves.append(Line(f"{selection} selection, {start} start", points))
            panels.append(Panel(method, unit, "accuracy %", curves, levels))
    return svg(panels, columns=2)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--max_per_class", type=int)
    parser.add_argument("--methods", nargs="+", default=["idc", "dm", "idm"])
    parser.add_argument("--selections", nargs="+", default=["random", "representative"])
    parser.add_argument("--starts", nargs="+", default=["random", "clustered"])
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--every", type=int, required=True, help="iterations between two sets that are judged")
    parser.add_argument("--inner_steps", type=int, help="idc: steps on each network; 100 are published")
    parser.add_argument("--train_steps", type=int, help="of the networks between two steps; the method's if left out")
    parser.add_argument("--real_batch", type=int, help="real images of a class in a step; the method's if left out")
    parser.add_argument("--interval", type=int, help="representative: steps between two clusterings")
    parser.add_argument("--cluster_weights", choices=["free", "fixed"], help="representative: free is DREAM's")
    parser.add_argument("--candidates", type=int, help="representative: images of a class; 0, all, is DREAM's")
    parser.add_argument("--dimensions", type=int, help="representative: of the features; 0, all, is DREAM's")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--matching_width", type=int, default=128)
    parser.add_argument("--cross", nargs="*", default=[], help="networks that judge the last sets, beside convnet")
    parser.add_argument("--width", type=int, default=64, help="of the judge")
    parser.add_argument("--judge_steps", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--shift", type=int, default=0)
    parser.add_argument("--mixed_precision", default="no")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; the picture goes beside it as .svg")
    parser.add_argument("--sets", type=Path, required=True, help="folder of the sets and of finished trainings")
    return parser


def main() -> None:
    args = options().parse_args()
    found = lines(args)
    print(table(found))
    if {line["network"] for line in found} != {"convnet"}:
        print(f"\n{cross_table(found)}")
    args.output.with_suffix(".svg").write_text(picture(found), encoding="utf-8")


if __name__ == "__main__":
    main()
