"""How alike two fingers are: minutiae with like surroundings that also lie alike towards each other.

First the similarity of all cylinders, then relaxation over the likeliest pairs (Cappelli, Ferrara and Maltoni, IEEE
TPAMI 32(12), 2010, with its parameters): a pair lives when others keep distance, direction and bearing towards it. The
best survivors then lay one finger over the other (`alignment`). The score is the geometric mean of the best fit, taken
twice, and the survivors' strength: the first says how much of what both prints show agrees, the second that it agrees
in detail. All is relative between minutiae, so a finger may be turned, moved, cut or stretched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from servers.identity.compiled import compiled
from servers.identity.fingerprint.alignment import aligned_similarity
from servers.identity.fingerprint.cylinders import CELLS, LAYERS, WORDS

if TYPE_CHECKING:
    from servers.identity.compiled import Floats, Ints, Words
    from servers.identity.fingerprint.cylinders import Cylinders

MAX_TURN: Final = np.pi / 2
"""Fingers turned further against each other are not compared: people do not press so."""
MIN_COMMON: Final = 0.60
STEPS: Final = 5
KEPT: Final = 0.5
MIN_PAIRS: Final = 4
MAX_PAIRS: Final = 12
SEEDS: Final = 8
"""Pairs that are tried to lay one finger over the other."""


@dataclass(frozen=True)
class Comparison:
    """How alike two fingers are (0 to 1), and the minutiae taken for the same, as positions in both templates."""

    score: float
    pairs: tuple[tuple[int, int], ...] = ()


def compare(probe: Cylinders, reference: Cylinders) -> Comparison:
    """Compare two fingers; which is which makes little difference."""
    if min(len(probe), len(reference)) < MIN_PAIRS:
        return Comparison(0.0)
    a, b = probe.places, reference.places
    likeness = _likeness(probe.bits, probe.valid, a[:, 2], reference.bits, reference.valid, b[:, 2])
    first, second = _best_pairs(likeness, min(len(a), len(b)))
    if len(first) < MIN_PAIRS:
        return Comparison(0.0)
    before = likeness[first, second]
    strength = _relax(before, a[first], b[second])
    fit, best = 0.0, np.full(len(a), -1, dtype=np.int32)
    for seed in np.argsort(-strength, kind="stable")[:SEEDS]:
        partner = np.empty(len(a), dtype=np.int32)
        found = aligned_similarity(
            likeness, a, b, probe.hull, reference.hull, int(first[seed]), int(second[seed]), partner
        )
        if found > fit:
            fit, best = found, partner
    pairs = tuple((int(probe.sources[i]), int(reference.sources[j])) for i, j in enumerate(best) if j >= 0)
    score = (fit**2 * _consolidated(before, strength)) ** (1 / 3)
    return Comparison(min(score, 1.0), pairs)


def _consolidated(before: Floats, after: Floats) -> float:
    """Mean strength of the pairs that lost least; how many count depends on how many there are (4 to 12)."""
    share = 1 / (1 + np.exp(-0.4 * (len(before) - 20)))
    wanted = MIN_PAIRS + round((MAX_PAIRS - MIN_PAIRS) * share)
    kept = np.argsort(-after / np.maximum(before, np.float32(1e-6)), kind="stable")[:wanted]
    return float(after[kept].sum() / wanted)


@compiled
def _ones(word: np.uint64) -> np.uint64:
    """Bits set in a 64-bit word; compiled to the machine's own instruction."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)


@compiled
def _likeness(bits_a: Words, valid_a: Words, angle_a: Floats, bits_b: Words, valid_b: Words, angle_b: Floats) -> Floats:
    """Similarity of every cylinder of one finger to every one of the other, 0 to 1."""
    rows, columns = len(bits_a), len(bits_b)
    likeness = np.zeros((rows, columns), dtype=np.float32)
    for i in range(rows):
        for j in range(columns):
            turn = abs(angle_a[i] - angle_b[j])
            if min(turn, 2 * np.pi - turn) > MAX_TURN:
                continue
            common = np.uint64(0)
            for w in range(WORDS):
                common += _ones(valid_a[i, w] & valid_b[j, w])
            if float(common) < MIN_COMMON * CELLS:
                continue
            in_a = np.uint64(0)
            in_b = np.uint64(0)
            differ = np.uint64(0)
            for layer in range(LAYERS):
                for w in range(WORDS):
                    valid = valid_a[i, w] & valid_b[j, w]
                    a, b = bits_a[i, layer, w] & valid, bits_b[j, layer, w] & valid
                    in_a += _ones(a)
                    in_b += _ones(b)
                    differ += _ones(a ^ b)
            if in_a and in_b:
                likeness[i, j] = 1 - np.sqrt(float(differ)) / (np.sqrt(float(in_a)) + np.sqrt(float(in_b)))
    return likeness


def _best_pairs(likeness: Floats, wanted: int) -> tuple[Ints, Ints]:
    """Pairs in falling similarity, each minutia once."""
    order = np.argsort(-likeness, axis=None, kind="stable")
    return _greedy(order.astype(np.int32), likeness.shape[0], likeness.shape[1], wanted)


@compiled
def _greedy(order: Ints, rows: int, columns: int, wanted: int) -> tuple[Ints, Ints]:
    first = np.empty(wanted, dtype=np.int32)
    second = np.empty(wanted, dtype=np.int32)
    row_free = np.ones(rows, dtype=np.bool_)
    column_free = np.ones(columns, dtype=np.bool_)
    count = 0
    for k in order:
        i, j = k // columns, k % columns
        if row_free[i] and column_free[j]:
            row_free[i] = False
            column_free[j] = False
            first[count], second[count] = i, j
            count += 1
            if count == wanted:
                break
    return first[:count], second[:count]


@compiled
def _soft(value: float, middle: float, slope: float) -> float:
    return float(1 / (1 + np.exp(-slope * (value - middle))))


@compiled
def _turned(a: float, b: float) -> float:
    """Angle from `b` to `a` in [-pi, pi)."""
    return (a - b + np.pi) % (2 * np.pi) - np.pi


@compiled
def _relax(before: Floats, a: Floats, b: Floats) -> Floats:
    """Similarities after the pairs (rows of x, y, angle in `a` and `b`) have supported each other."""
    count = len(before)
    support = np.zeros((count, count), dtype=np.float32)
    for t in range(count):
        for k in range(count):
            if t == k:
                continue
            ax, ay = a[k, 0] - a[t, 0], a[k, 1] - a[t, 1]
            bx, by = b[k, 0] - b[t, 0], b[k, 1] - b[t, 1]
            apart = abs(np.sqrt(ax * ax + ay * ay) - np.sqrt(bx * bx + by * by))
            turn = abs(_turned(_turned(a[t, 2], a[k, 2]), _turned(b[t, 2], b[k, 2])))
            bearing = abs(_turned(_turned(a[t, 2], np.arctan2(ay, ax)), _turned(b[t, 2], np.arctan2(by, bx))))
            support[t, k] = _soft(apart, 5.0, -1.6) * _soft(turn, np.pi / 12, -30.0) * _soft(bearing, np.pi / 12, -30.0)
    now = before.copy()
    for _ in range(STEPS):
        following = np.empty_like(now)
        for t in range(count):
            total = np.float32(0.0)
            for k in range(count):
                total += support[t, k] * now[k]
            following[t] = np.float32(KEPT) * now[t] + np.float32(1 - KEPT) * total / (count - 1)
        now = following
    return now
