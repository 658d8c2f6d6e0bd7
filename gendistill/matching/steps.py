"""One step for all classes that equals one after another: the momentum rule of a round.

The released IDC, DREAM and IDM codes keep the images of all classes in one SGD optimiser (momentum mu, rate lr) and
step after EACH class. The C - 1 steps of the other classes bring a class no gradient, but its momentum still moves it.
With b its buffer right after its own step, b = mu^C b_before + g, its images move in one round of C steps by

    lr (b + mu b + ... + mu^(C-1) b) = lr (1 - mu^C) / (1 - mu) b,

which is one SGD step with mu' = mu^C and lr' = lr (1 - mu^C) / (1 - mu). At mu = 0.5 and C >= 10 that is 2 lr and next
to no momentum.

Exact: every class's images at the moments its own gradient is taken, hence all gradients, as long as that gradient
depends on no other class's images and nothing else touches the images between the steps (no clamping, no weight decay,
no Nesterov, no dampening). At the end of a round the sequential loop still owes the class at place c (from 0) its
first c steps of the next round, which the joint step has already made; ``end_of_round`` gives the difference.
"""

from __future__ import annotations

from gendistill.errors import ConfigError


def joint_rule(momentum: float, learning_rate: float, classes: int) -> tuple[float, float]:
    """(mu', lr') of the joint SGD step that equals ``classes`` steps in turn.

    Raises:
        ConfigError: momentum outside [0, 1), or no classes.
    """
    _check(momentum, classes)
    return momentum**classes, learning_rate * _sum_of_powers(momentum, classes)


def end_of_round(momentum: float, learning_rate: float, classes: int) -> list[float]:
    """Factor of each class's buffer that leads from the joint step's images to the sequential loop's after a round.

    After any round, images of the class at place c in the loop = joint images + factor_c * joint momentum buffer, with
    factor_c = lr (mu^(C-c) - mu^C) / (1 - mu): 0 for the first class, growing to lr (mu - mu^C) / (1 - mu).

    Raises:
        ConfigError: momentum outside [0, 1), or no classes.
    """
    _check(momentum, classes)
    return [learning_rate * momentum ** (classes - c) * _sum_of_powers(momentum, c) for c in range(classes)]


def _sum_of_powers(base: float, count: int) -> float:
    """1 + base + ... + base^(count-1) = (1 - base^count) / (1 - base), without its loss of digits near 1."""
    return sum(base**power for power in range(count))


def _check(momentum: float, classes: int) -> None:
    if not 0 <= momentum < 1:
        raise ConfigError(f"momentum is {momentum}; expected 0 or more and less than 1.")
    if classes < 1:
        raise ConfigError(f"classes is {classes}; expected 1 or more.")
