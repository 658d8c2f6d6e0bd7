"""Whether a surrogate set holds copies of real images: exact ones by hash, near ones by their distance.

Distances are root mean square differences, ||x - y|| / sqrt(D): of pixels in grey levels of 0 to 255, or of a network's
features. Held-out real images say what distance is usual. This shows copying; it does not show privacy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gendistill.data.class_positions import evenly_spaced
from gendistill.data.dataset import RealData
from gendistill.data.mapped import BLOCK, Images, block_of, image_hashes, map_batches
from gendistill.errors import DataError
from gendistill.evaluation.summary import CopyNumbers
from gendistill.progress import show_progress, track

PIXELS, FEATURES = "pixels", "teacher features"
SPLITS = ("train", "validation", "test")
QUANTILE = 0.01  # of the held-out distances: what is as close as that is near
KEPT = 1 << 29  # bytes of points that stay in memory for the next set; more are computed again for it
SLICE = 1024  # sums of so many products of integers within 128 stay within 2^24, which float32 counts exactly


@dataclass(frozen=True)
class Match:
    """An image of the set, and the real image that it is closest to or, to the last pixel, equals."""

    image: int
    split: str
    position: int
    distance: float
    equal: bool


@dataclass(frozen=True)
class Copies:
    """The result of the copy check of one set.

    Attributes:
        space: What distances are between: ``pixels``, ``teacher features``, or those of another network.
        hashes: The hash of the pixels of each of the N images.
        exact: By split, for each of them the position there of an image with the same pixels, or -1.
        measured: Positions (M,) of the images whose distance was measured.
        points: Their features, or pixels, (M,D).
        distances: Distance of each of them to the closest training image, (M,).
        positions: The positions of those training images, (M,).
        held_out: Distances (V,) of validation images to the closest training image.
    """

    space: str
    hashes: Sequence[bytes]
    exact: dict[str, Tensor]
    measured: Tensor
    points: Tensor
    distances: Tensor
    positions: Tensor
    held_out: Tensor

    @property
    def images(self) -> int:
        return len(self.exact["train"])

    @property
    def counts(self) -> dict[str, int]:
        """Exact copies of images of each split."""
        return {split: int((found >= 0).sum()) for split, found in self.exact.items()}

    @property
    def threshold(self) -> float:
        """The distance that 99 % of the held-out images exceed."""
        return float(self.held_out.quantile(QUANTILE))

    @property
    def near(self) -> Tensor:
        """Which of the measured images (M,) are as close to a training image as that, or are one."""
        return (self.distances <= self.threshold) | (self.exact["train"][self.measured] >= 0)

    def closest(self, most: int) -> list[Match]:
        """Copies of test and validation images, which no set may contain, then the closest to training images."""
        leaks = [
            Match(int(i), split, int(self.exact[split][i]), 0.0, True)
            for split in ("test", "validation")
            for i in torch.nonzero(self.exact[split] >= 0).flatten()
        ]
        order = torch.argsort(self.distances, stable=True)[:most].tolist()
        return [*leaks[: most // 2], *map(self._match, order)][:most]

    def _match(self, i: int) -> Match:
        """The i-th measured image and its closest training image."""
        image = int(self.measured[i])
        twin = int(self.exact["train"][image])
        position = int(self.positions[i]) if twin < 0 else twin
        return Match(image, "train", position, float(self.distances[i]), twin >= 0)

    def summary(self) -> CopyNumbers:
        """Plain numbers."""
        return {
            "space": self.space,
            "images": self.images,
            "exact": self.counts,
            "measured": len(self.measured),
            "near": int(self.near.sum()),
            "threshold": self.threshold,
            "median": float(self.distances.median()),
            "held_out_median": float(self.held_out.median()),
        }


@dataclass(frozen=True, eq=False)
class Points:
    """The images of a split as points (B,D), block by block; kept where all of them take little memory.

    Attributes:
        images: uint8 (N,C,H,W).
        embed: Images (B,C,H,W) -> points (B,D).
    """

    images: Images
    embed: Callable[[Tensor], Tensor]
    _kept: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Tensor]:
        if self._kept:
            yield from self._kept
            return
        found: list[Tensor] = []
        for part in self.images.split(block_of(self.images)):
            with show_progress(False):
                block = self.embed(part)
            yield block
            if block[0].nbytes * len(self) <= KEPT:
                found.append(block)
        self._kept.extend(found)


@dataclass(frozen=True)
class CopyCheck:
    """The real images that sets are compared with, for any number of sets.

    Attributes:
        data: The real images.
        features: What distances are between, images (B,C,H,W) -> (B,D); None for pixels.
        most: How many images of a set, and held-out ones, are measured at most, evenly spaced; None for all.
        points: The training images.
        held_out_points: Validation images (V,D).
        held_out: Their distances (V,) to the closest training image.
        space: A name for what distances are between.
    """

    data: RealData
    features: Callable[[Tensor], Tensor] | None
    most: int | None
    points: Points
    held_out_points: Tensor
    held_out: Tensor
    space: str

    @classmethod
    def of(
        cls,
        data: RealData,
        *,
        features: Callable[[Tensor], Tensor] | None = None,
        most: int | None = None,
        space: str = FEATURES,
    ) -> CopyCheck:
        """Prepare the real images; ``space`` names the ``features``.

        Raises:
            DataError: there are none.
        """
        if not len(data.validation):
            raise DataError("The copy check got no held-out real images; raise data.validation_fraction.")
        embed = features or _flat
        points = Points(data.train.images, embed)
        positions = torch.tensor(evenly_spaced(len(data.validation), most))
        held_out = map_batches(embed, data.validation.take(positions).images)
        distances, _ = nearest(held_out, points)
        return cls(data, features, most, points, held_out, distances, space if features else PIXELS)

    def check(self, made: Tensor) -> Copies:
        """Find copies of real images among ``made`` (N,C,H,W), the decoded uint8 images of a set.

        All images are compared by hash, at most ``most`` by distance.

        Raises:
            DataError: there are none, or they have another size than the real ones.
        """
        return self.check_all([made])[0]

    def check_all(self, sets: Iterable[Tensor]) -> list[Copies]:
        """The same of several sets, for which the training images are read once."""
        hashes, measured, searches = list[np.ndarray](), list[Tensor](), list[Search]()
        for made in sets:
            self._check_shape(made)
            hashes.append(image_hashes(made))
            measured.append(torch.tensor(evenly_spaced(len(made), self.most)))
            searches.append(Search(map_batches(self.features or _flat, made[measured[-1]])))
        search(searches, self.points)
        return [
            Copies(
                space=self.space,
                hashes=list(map(bytes, own)),
                exact={split: getattr(self.data, split).find(own) for split in SPLITS},
                measured=positions,
                points=found.points,
                distances=found.distances(),
                positions=found.positions,
                held_out=self.held_out,
            )
            for own, positions, found in zip(hashes, measured, searches, strict=True)
        ]

    def _check_shape(self, made: Tensor) -> None:
        wanted = self.data.train.images.shape[1:]
        if not len(made) or made.shape[1:] != wanted:
            raise DataError(
                f"The copy check got {len(made)} images of {tuple(made.shape[1:])} (C,H,W); expected at least one, of "
                f"{tuple(wanted)}. Give the data.image_size of the set."
            )


class Search:
    """The closest of other points to each of ``points`` (N,D), while blocks of the others come by.

    ``positions`` (N,) are theirs among all others. Up to ``rows`` points are compared at once.
    """

    def __init__(self, points: Tensor, rows: int = BLOCK) -> None:
        self.points, self.rows = points, rows
        self.positions = torch.zeros(len(points), dtype=torch.int64)
        self._least = torch.full((len(points),), torch.inf, dtype=torch.float64)
        self._closest = torch.zeros_like(points)

    def compare(self, first: int, block: Tensor) -> None:
        """The others from position ``first`` on, (M,D)."""
        for i in range(0, len(self.points), self.rows):
            here = slice(i, i + self.rows)
            low, position = _scores(self.points[here], block).min(1)
            closer = low < self._least[here]
            self._least[here][closer] = low[closer]
            self.positions[here][closer] = position[closer] + first
            self._closest[here][closer] = block[position[closer]]

    def distances(self) -> Tensor:
        """To the closest of the others, (N,), in float64."""
        pairs = zip(self.points.split(self.rows), self._closest.split(self.rows), strict=True)
        return torch.cat([_distances(x, y) for x, y in pairs])


def search(searches: Sequence[Search], others: Points | Sequence[Tensor]) -> None:
    """Compare the points of all ``searches`` with blocks of others."""
    if not searches:
        return
    first = 0
    blocks = -(-len(others) // block_of(others.images)) if isinstance(others, Points) else len(others)
    for block in track(others, "closest real images", blocks):
        for one in searches:
            one.compare(first, block)
        first += len(block)


def nearest(points: Tensor, others: Tensor | Points, rows: int = BLOCK) -> tuple[Tensor, Tensor]:
    """(distances, positions) of the one of ``others`` (M,D) closest to each of ``points`` (N,D), in float64.

    For uint8 the result is exact. For floats the search is in float32 and the distance of its result in float64, so
    that equal points have distance 0. ``rows`` is how many points are compared at once.
    """
    found = Search(points, rows)
    search([found], others if isinstance(others, Points) else others.split(rows))
    return found.distances(), found.positions


def _scores(x: Tensor, y: Tensor) -> Tensor:
    """||y||^2 / 2 - x.y, (n,m): it orders the rows of ``y`` (m,D) as their distances to a row of ``x`` (n,D) do."""
    norms = torch.zeros(len(y), dtype=torch.float64)
    products = torch.zeros(len(x), len(y), dtype=torch.float64)
    for ours, theirs in zip(x.split(SLICE, 1), y.split(SLICE, 1), strict=True):
        a, b = _numbers(ours), _numbers(theirs)
        products += a @ b.T
        norms += b.square().sum(1)
    return norms / 2 - products


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """||x - y|| / sqrt(D), (n,), row by row."""
    slices = zip(x.split(SLICE, 1), y.split(SLICE, 1), strict=True)
    squares = [(ours.double() - theirs.double()).square().sum(1) for ours, theirs in slices]
    return (torch.stack(squares).sum(0) / x.shape[1]).sqrt()


def _numbers(values: Tensor) -> Tensor:
    """float32; pixels less 128, which moves no distance."""
    return values.float() - 128 if values.dtype == torch.uint8 else values.float()


def _flat(images: Tensor) -> Tensor:
    return images.flatten(1)


MOST = 500  # images of a set whose distances are measured
SIDE = 32  # pixels: larger images are reduced to this before they are compared
RATIO = 0.5  # near copies of test images are at most this many times as far from one as from any training image


def small_pixels(images: Tensor) -> Tensor:
    """uint8 (N,C,H,W) -> uint8 (N,D), of images reduced to ``SIDE`` where they are larger."""
    if images.shape[-1] <= SIDE:
        return images.flatten(1)
    return torch.cat(
        [F.interpolate(x.float(), (SIDE, SIDE), mode="area").round().byte() for x in images.split(256)]
    ).flatten(1)


def space(data: RealData) -> str:
    return "pixels" if data.image_size <= SIDE else f"pixels at {SIDE}x{SIDE}"


@dataclass(frozen=True)
class LeakageCheck:
    """The test images, prepared once for any number of sets.

    Attributes:
        reference: The copy check, by pixels.
        test: Test images in the same space.
        usual: Share of held-out real images that the check calls near copies of test images.
    """

    reference: CopyCheck
    test: Points
    usual: float

    @classmethod
    def of(cls, data: RealData) -> LeakageCheck:
        reference = CopyCheck.of(data, features=small_pixels, space=space(data), most=MOST)
        test = Points(data.test.images, small_pixels)
        threshold = float(reference.held_out.quantile(QUANTILE))
        close = _much_closer(nearest(reference.held_out_points, test)[0], reference.held_out, threshold)
        return cls(reference, test, float((close.sum() + 1) / (len(close) + 1)))

    def near(self, copies: Copies) -> Tensor:
        """Positions of the measured images that are near but no exact copies of test images."""
        to_test, _ = nearest(copies.points, self.test)
        close = _much_closer(to_test, copies.distances, copies.threshold)
        return copies.measured[close & (copies.exact["test"][copies.measured] < 0)]


def _much_closer(to_test: Tensor, to_train: Tensor, threshold: float) -> Tensor:
    return (to_test < RATIO * to_train) & (to_test <= threshold)
