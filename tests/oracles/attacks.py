"""What attackers send, one naive function each.

`honest` and `own` are (h, d) and (k, d) float64 arrays of finite numbers. A row that all attackers
send is (d,). Nothing is changed in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from oracles import rules

Array = NDArray[np.float64]
Defence = Callable[[Array], Array]


def perturbation(honest: Array, kind: str) -> Array:
    """Shejwalkar & Houmansadr 2021: -σ, -ḡ/‖ḡ‖ or -sign(ḡ), by "std", "unit", "sign".

    σ divides by h.
    """
    h, d = honest.shape
    mean = rules.mean(honest)
    found = np.zeros(d)
    for j in range(d):
        if kind == "std":
            found[j] = -math.sqrt(sum((x - mean[j]) ** 2 for x in honest[:, j]) / h)
        elif kind == "unit":
            found[j] = -mean[j] / math.sqrt(sum(x * x for x in mean))
        else:
            found[j] = -np.sign(mean[j])
    return found


def min_max(honest: Array, kind: str) -> Array:
    """ḡ + γ p, γ by bisection: the last at which no honest row is farther than two of them are.

    Shejwalkar & Houmansadr 2021, equation of Min-Max.
    """
    longest = max(_distance(a, b) for a in honest for b in honest)

    def hidden(row: Array) -> bool:
        return max(_distance(row, x) for x in honest) <= longest * (1 + 1e-14)

    return _farthest(honest, kind, hidden)


def min_sum(honest: Array, kind: str) -> Array:
    """ḡ + γ p, γ by bisection: the last at which squared distances add up to no more than some
    honest row's.

    Shejwalkar & Houmansadr 2021, equation of Min-Sum.
    """
    largest = max(sum(_distance(a, b) ** 2 for b in honest) for a in honest)

    def hidden(row: Array) -> bool:
        return sum(_distance(row, x) ** 2 for x in honest) <= largest * (1 + 1e-14)

    return _farthest(honest, kind, hidden)


def _farthest(honest: Array, kind: str, hidden: Callable[[Array], bool]) -> Array:
    mean, direction = rules.mean(honest), perturbation(honest, kind)
    low, high = 0.0, 1.0
    while hidden(mean + high * direction):
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if hidden(mean + middle * direction):
            low = middle
        else:
            high = middle
    return mean + low * direction


def _distance(a: Array, b: Array) -> float:
    return math.sqrt(float(np.sum((a - b) ** 2)))


def fang_bounds(honest: Array, b: float) -> tuple[Array, Array]:
    """Least and largest value of every coordinate against the trimmed mean, full knowledge.

    Fang et al. 2020, section 4.3, for gradients: where the mean's coordinate is >= 0, below the
    least honest value v, from v/b (v > 0) or b v (v <= 0); otherwise above the largest one, to b v
    (v > 0) or v/b (v <= 0).
    """
    d = honest.shape[1]
    low, high = np.zeros(d), np.zeros(d)
    for j in range(d):
        column = sorted(honest[:, j].tolist())
        if sum(column) >= 0:
            v = column[0]
            low[j], high[j] = (v / b if v > 0 else b * v), v
        else:
            v = column[-1]
            low[j], high[j] = v, (b * v if v > 0 else v / b)
    return low, high


def fang_own_bounds(own: Array) -> tuple[Array, Array]:
    """The same with partial knowledge: 3 to 4 standard deviations from the mean of the own rows."""
    d = own.shape[1]
    low, high = np.zeros(d), np.zeros(d)
    for j in range(d):
        mean = sum(own[:, j]) / len(own)
        std = math.sqrt(sum((x - mean) ** 2 for x in own[:, j]) / len(own))
        low[j], high[j] = (mean - 4 * std, mean - 3 * std)
        if mean < 0:
            low[j], high[j] = (mean + 3 * std, mean + 4 * std)
    return low, high


def fang_krum(honest: Array, k: int, threshold: float) -> Array:
    """-λ sign(ḡ), λ halved from the upper bound until Krum chooses it (section 4.2), or too small.

    Krum of f = k, over the honest rows and k equal ones.
    """
    h, d = honest.shape
    n = h + k
    sign = np.where(rules.mean(honest) >= 0, 1.0, -1.0)
    sums = []
    for i in range(h):
        distances = sorted(_distance(honest[i], honest[j]) ** 2 for j in range(h) if j != i)
        sums.append(sum(distances[: n - k - 2]))
    factor = math.sqrt(min(sums) / ((n - 2 * k - 1) * d))
    factor += max(_distance(x, np.zeros(d)) for x in honest) / math.sqrt(d)
    while factor >= threshold:
        scores = rules.krum_scores(np.concatenate([honest, [-factor * sign] * k]), k)
        if min(scores[h:]) < min(scores[:h]):
            break
        factor /= 2
    return -factor * sign


def damage(defence: Defence, honest: Array, row: Array, k: int) -> float:
    """‖defence(rows) - ḡ‖ where all k attackers send `row`."""
    answer = defence(np.concatenate([honest, [row] * k]))
    return _distance(answer, rules.mean(honest))


class Mimicry:
    """Karimireddy et al. 2022, section 3.2, with the sum normalised as in the authors' code."""

    def __init__(self, warmup: int, direction: Array) -> None:
        self.warmup, self.direction = warmup, direction
        self.rounds = 0
        self.centre = np.zeros_like(direction)
        self.target = -1

    def round(self, honest: Array, senders: Sequence[int]) -> Array:
        """The row that is copied this round."""
        t = self.rounds
        self.rounds += 1
        if t < self.warmup:
            self.centre = t / (t + 1) * self.centre + rules.mean(honest) / (t + 1)
            total = np.zeros_like(self.centre)
            for x in honest:
                total += np.dot(x - self.centre, self.direction) * (x - self.centre)
            total /= np.linalg.norm(total)
            # The start is no estimate: its share at t = 0 is 0.
            self.direction = t / (t + 1) * self.direction + total / (t + 1)
            self.direction /= np.linalg.norm(self.direction)
        elif self.target in senders:
            return honest[list(senders).index(self.target)]
        place = max(range(len(honest)), key=lambda i: float(np.dot(honest[i], self.direction)))
        if t < self.warmup:
            self.target = senders[place]
        return honest[place]


def rop(
    honest: Array, last: Array | None, *, z: float, relocation: float, memory: float, angle: float
) -> Array:
    """Özfatura et al. 2024: z off ``π m + (1-π) ḡ``, at an angle to ``λ m + (1-λ) ḡ``."""
    mean = rules.mean(honest)
    last = mean if last is None else last
    reference = memory * last + (1 - memory) * mean
    across = np.ones(len(mean))
    across = across - np.dot(across, reference) / np.dot(reference, reference) * reference
    across /= np.linalg.norm(across)
    along = reference / np.linalg.norm(reference)
    turned = math.sin(math.radians(angle)) * across + math.cos(math.radians(angle)) * along
    return relocation * last + (1 - relocation) * mean + z * turned / np.linalg.norm(turned)


def anti_clip(
    honest: Array, last: Array, *, n: int, radius: float | None, share: float, norm: str
) -> Array:
    """``m + c τ u`` against the honest mean, u of length 1 (l2) or of entries ±1 (linf).

    τ is given, or the ⌈n/2⌉-th smallest over the rows of ‖x_i - m‖ (l2), or of the largest of the
    |x_ij - m_j| that are not 0, once a hundredth of them has been left out (linf).
    """
    mean = rules.mean(honest)
    away = -np.sign(mean) if norm == "linf" else -mean / np.linalg.norm(mean)
    if radius is None:
        gaps = []
        for x in honest:
            apart = sorted(abs(v) for v in x - last if v != 0)
            gaps.append(
                apart[len(apart) - len(apart) // 100 - 1] if norm == "linf" else _distance(x, last)
            )
        radius = sorted(gaps)[min(math.ceil(n / 2), len(gaps)) - 1]
    return last + share * radius * away


def drift(honest: Array, direction: Array, strength: float) -> Array:
    """``ḡ + c s u``, s² the mean of the ‖x_i - ḡ‖²."""
    mean = rules.mean(honest)
    scatter = sum(_distance(x, mean) ** 2 for x in honest) / len(honest)
    return mean + strength * math.sqrt(scatter) * direction


def marked(image: Array, size: int, value: float, corner: str) -> Array:
    """An image (..., H, W) with a square of one value in a corner."""
    height, width = image.shape[-2:]
    found = image.copy()
    for r in range(size):
        for c in range(size):
            y = r if corner.startswith("top") else height - 1 - r
            x = c if corner.endswith("left") else width - 1 - c
            found[..., y, x] = value
    return found
