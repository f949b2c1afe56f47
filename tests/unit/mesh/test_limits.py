"""Budgets over a clock of the test's own."""

from __future__ import annotations

from servers.mesh.limits import WindowLimiter


async def test_a_window_admits_its_budget_and_the_next_again() -> None:
    now = 0.0
    limiter = WindowLimiter(clock=lambda: now)
    assert [await limiter.admit("anna", "/m", 2) for _ in range(2)] == [None, None]
    now = 15.0
    assert await limiter.admit("anna", "/m", 2) == 45.0
    assert await limiter.admit("anna", "/other", 2) is None
    assert await limiter.admit("bela", "/m", 2) is None
    now = 60.0
    assert await limiter.admit("anna", "/m", 2) is None


async def test_made_up_subjects_share_one_budget_when_the_memory_is_full() -> None:
    limiter = WindowLimiter(capacity=3, clock=lambda: 0.0)
    for name in "abc":
        assert await limiter.admit(name, "/m", 5) is None
    admitted = [await limiter.admit(f"made-up-{number}", "/m", 5) for number in range(100)]
    assert admitted.count(None) == 5
    assert await limiter.admit("a", "/m", 5) is None  # who was there before keeps their own
    assert len(limiter._counts) <= 4
