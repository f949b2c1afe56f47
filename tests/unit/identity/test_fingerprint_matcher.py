"""The same finger matches however it is laid down; another one does not."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.identity.fingerprint.cylinders import CELLS, RADIUS, SIDE, Cylinders, describe
from servers.identity.fingerprint.extractor import extract
from servers.identity.fingerprint.iso19794 import read_record, write_record
from servers.identity.fingerprint.matcher import compare
from servers.identity.fingerprint.template import Minutiae
from tests.support.fingerprints import finger, impression

if TYPE_CHECKING:
    from servers.identity.compiled import Bytes

OTHERS = range(2, 8)


def _described(image: Bytes) -> Cylinders:
    return describe(extract(image).template.minutiae)


@functools.cache
def _enrolled() -> Cylinders:
    return _described(finger(1).image)


@functools.cache
def _highest_impostor() -> float:
    return max(compare(_enrolled(), _described(finger(seed).image)).score for seed in OTHERS)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"turn": 20, "shift": (12, -9)},
        {"turn": -45},
        {"turn": 80},
        {"stretch": 0.05},
        {"stretch": 0.08, "turn": 10},
        {"shift": (90, 0)},
        {"shift": (0, 130)},
        {"noise": 30.0},
    ],
    ids=str,
)
def test_the_same_finger_scores_well_above_every_other(changes: dict[str, Any]) -> None:
    again = _described(impression(finger(1).image, seed=5, **changes))
    # The others grew along the same flow: nothing but minutiae tells them apart.
    assert compare(_enrolled(), again).score > _highest_impostor() + 0.1


def test_a_part_of_the_finger_matches_the_whole() -> None:
    part = impression(finger(1).image, seed=6)
    part[:, :130] = 245
    assert compare(_enrolled(), _described(part)).score > _highest_impostor() + 0.1


def test_a_finger_against_itself_pairs_each_minutia_with_itself() -> None:
    found = compare(_enrolled(), _enrolled())
    assert 0.7 < found.score <= 1
    assert all(first == second for first, second in found.pairs)
    assert len(found.pairs) == len(_enrolled())


def test_pairs_name_minutiae_of_the_templates() -> None:
    first = extract(finger(1).image).template.minutiae
    second = extract(impression(finger(1).image, shift=(15, 10))).template.minutiae
    pairs = compare(describe(first), describe(second)).pairs
    assert len(pairs) > 15
    moved = [(second.x[j] - first.x[i], second.y[j] - first.y[i]) for i, j in pairs]
    assert np.median(moved, axis=0) == pytest.approx((15, 10), abs=2)


def test_the_order_makes_little_difference() -> None:
    again = _described(impression(finger(1).image, turn=15, seed=3))
    assert compare(_enrolled(), again).score == pytest.approx(compare(again, _enrolled()).score, abs=0.05)


def test_the_standard_record_keeps_what_matching_needs() -> None:
    again = extract(impression(finger(1).image, turn=15, seed=3)).template
    (read,) = read_record(write_record(again))
    direct = compare(_enrolled(), describe(again.minutiae)).score
    assert compare(_enrolled(), describe(read.minutiae)).score == pytest.approx(direct, abs=0.05)


def test_a_cylinder_covers_the_circle_around_its_minutia() -> None:
    middle = (np.arange(SIDE) - (SIDE - 1) / 2) * 2 * RADIUS / SIDE
    assert (np.hypot(*np.meshgrid(middle, middle)) <= RADIUS).sum() == CELLS
    most = max(sum(int(word).bit_count() for word in row) for row in _enrolled().valid)
    assert 0.75 * CELLS <= most <= CELLS


@settings(max_examples=60, deadline=2_000)
@given(
    rows=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 255)), max_size=40),
    same=st.booleans(),
)
def test_any_minutiae_can_be_compared(rows: list[tuple[int, int, int]], same: bool) -> None:
    columns = np.array(rows, dtype=np.float32).reshape(-1, 3)
    ones = np.ones(len(columns), dtype=np.uint8)
    minutiae = Minutiae(columns[:, 0], columns[:, 1], columns[:, 2] * np.float32(np.pi / 128), ones, ones)
    probe = describe(minutiae)
    score = compare(probe, probe if same else _enrolled()).score
    assert 0 <= score <= 1
