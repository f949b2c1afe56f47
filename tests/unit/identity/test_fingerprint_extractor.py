"""Fingers grown from noise, with known flow, are read as they were grown."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from servers.identity.fingerprint.extractor import CaptureError, CaptureProblem, extract
from servers.identity.fingerprint.grid import CELL
from servers.identity.fingerprint.minutiae import find_minutiae
from servers.identity.fingerprint.template import Kind, Pattern, SingularPoint
from tests.support.fingerprints import finger, impression

if TYPE_CHECKING:
    from servers.identity.compiled import Bytes

PATTERNS = [Pattern.LEFT_LOOP, Pattern.RIGHT_LOOP, Pattern.WHORL, Pattern.ARCH]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", [1, 2])
def test_pattern_cores_and_deltas_are_where_they_were_put(pattern: Pattern, seed: int) -> None:
    made = finger(seed, pattern)
    seen = extract(made.image).template
    assert seen.pattern is pattern
    for points, truth in ((seen.cores, made.cores), (seen.deltas, made.deltas)):
        assert len(points) == len(truth)
        for x, y in truth:
            assert min(np.hypot(point.x - x, point.y - y) for point in points) < 3 * CELL


def test_the_core_points_to_where_its_loop_opens() -> None:
    (core,) = extract(finger(1, Pattern.RIGHT_LOOP).image).template.cores
    assert core.angle is not None
    # Down and to the right, anticlockwise from the right.
    assert 3 * np.pi / 2 < core.angle < 2 * np.pi


def test_directions_and_ridge_distance_are_those_of_the_flow() -> None:
    made = finger(3, Pattern.ARCH)
    seen = extract(made.image)
    rows, columns = seen.mask.shape
    y, x = np.mgrid[:rows, :columns] * CELL + CELL / 2
    doubled = 1.2 * np.sin(2 * np.pi * (x - 144) / 288) * np.sin(np.pi * y / 352)
    apart = np.abs(np.angle(np.exp(1j * (2 * seen.field.angle - doubled))))[seen.mask] / 2
    assert np.degrees(np.median(apart)) < 4
    assert np.median(seen.distance[seen.mask]) == pytest.approx(9.0, abs=0.7)


def test_minutiae_turn_with_the_finger() -> None:
    made = finger(1).image
    upright = extract(impression(made, noise=0)).template.minutiae
    turned = extract(impression(made, noise=0, turn=30)).template.minutiae
    angle = np.radians(30)
    dx, dy = upright.x - 144, upright.y - 176
    x = 144 + np.cos(angle) * dx + np.sin(angle) * dy
    y = 176 - np.sin(angle) * dx + np.cos(angle) * dy
    found = 0
    for u, v, direction in zip(x, y, upright.angle + angle, strict=True):
        near = np.hypot(turned.x - u, turned.y - v) < 8
        alike = np.cos(turned.angle - direction) > np.cos(np.radians(25))
        found += bool((near & alike).any())
    assert found > 0.7 * len(upright)


def test_columns_have_the_units_they_promise() -> None:
    found = extract(finger(1).image).template.minutiae
    assert 20 < len(found) < 100
    assert ((found.angle >= 0) & (found.angle < 2 * np.pi)).all()
    assert set(found.kind.tolist()) == {Kind.ENDING, Kind.BIFURCATION}
    assert ((found.quality >= 1) & (found.quality <= 100)).all()
    assert (np.diff(found.quality.astype(int)) <= 0).all()


def test_noise_lowers_the_quality() -> None:
    made = finger(1).image
    clear, noisy = extract(made).template.quality, extract(impression(made, noise=60)).template.quality
    assert 0 < noisy < clear - 0.1 < 1


@pytest.mark.parametrize("tall", [False, True])
def test_a_short_ridge_is_an_island_and_a_branch_that_ends_soon_a_spur(tall: bool) -> None:
    lines = np.zeros((80, 160), dtype=np.uint8)
    lines[20, 10:150] = 1
    lines[40, 70:80] = 1
    for step in range(1, 7):
        lines[20 - step, 60 + step] = 1
    if tall:
        lines = np.ascontiguousarray(lines.T)
    mask = np.ones((lines.shape[0] // CELL, lines.shape[1] // CELL), dtype=np.bool_)
    found = find_minutiae(lines, mask, np.ones(mask.shape, dtype=np.float32))
    kept = sorted(zip(found.x.tolist(), found.y.tolist(), strict=True))
    assert kept == ([(20.0, 10.0), (20.0, 149.0)] if tall else [(10.0, 20.0), (149.0, 20.0)])


def test_an_ending_points_along_its_ridge_and_a_fork_along_the_valley_between_its_branches() -> None:
    lines = np.zeros((96, 160), dtype=np.uint8)
    lines[48, 20:80] = 1
    for step in range(1, 50):
        lines[48 - step // 2, 79 + step] = 1
        lines[48 + step // 2, 79 + step] = 1
    mask = np.ones((12, 20), dtype=np.bool_)
    found = find_minutiae(lines, mask, np.ones(mask.shape, dtype=np.float32))
    fork = found.take(found.kind == Kind.BIFURCATION)
    ending = found.take((found.kind == Kind.ENDING) & (found.x < 40))
    assert len(fork) == len(ending) == 1
    assert np.cos(fork.angle[0]) > 0.97
    assert np.cos(ending.angle[0]) > 0.97


def _blank(level: int) -> Bytes:
    return np.full((352, 288), level, dtype=np.uint8)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (_blank(255), CaptureProblem.BLANK),
        (_blank(0), CaptureProblem.BLANK),
        (np.zeros((89, 400), dtype=np.uint8), CaptureProblem.TOO_SMALL),
        (np.zeros((1, 1), dtype=np.uint8), CaptureProblem.TOO_SMALL),
        (np.zeros((2000, 2000), dtype=np.uint8), CaptureProblem.TOO_LARGE),
    ],
)
def test_what_shows_no_finger_is_refused_with_advice(image: Bytes, problem: CaptureProblem) -> None:
    with pytest.raises(CaptureError) as refused:
        extract(image)
    assert refused.value.problem is problem
    assert ";" in str(refused.value)


def test_a_sliver_of_a_finger_is_refused() -> None:
    image = finger(1).image.copy()
    image[:, 96:] = 245
    with pytest.raises(CaptureError) as refused:
        extract(image)
    assert refused.value.problem is CaptureProblem.PARTIAL


def test_mere_noise_is_no_finger() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (352, 288)).astype(np.uint8)
    try:
        quality = extract(noise).template.quality
    except CaptureError as refused:
        assert refused.problem is CaptureProblem.UNCLEAR  # noqa: PT017 - either outcome is right
    else:
        assert quality < 0.5


def test_the_largest_image_allowed_takes_bounded_time() -> None:
    tiled = np.tile(finger(1).image, (5, 5))[:1580, :1580]
    extract(finger(1).image)
    started = time.thread_time()
    extract(tiled)
    assert time.thread_time() - started < 5


def test_a_singular_point_is_comparable() -> None:
    assert SingularPoint(1.0, 2.0) == SingularPoint(1.0, 2.0, None)
