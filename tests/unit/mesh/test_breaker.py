"""The breaker's states over a clock of the test's own."""

from __future__ import annotations

import pytest

from servers.mesh.breaker import BreakerState, CircuitBreaker
from servers.mesh.errors import ErrorReason, MeshError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock, minimum_calls: int = 4) -> CircuitBreaker:
    return CircuitBreaker("database", minimum_calls=minimum_calls, clock=clock)


def state(guard: CircuitBreaker) -> BreakerState:
    """A function, because a type checker takes a property to stay what it was."""
    return guard.state


def calls(guard: CircuitBreaker, outcomes: str) -> None:
    for outcome in outcomes:
        guard.before_call()
        guard.succeeded() if outcome == "." else guard.failed()


def test_half_is_not_over_half() -> None:
    guard = breaker(Clock())
    calls(guard, "..xx.x.x")
    assert state(guard) is BreakerState.CLOSED
    guard.before_call()
    guard.failed()
    assert state(guard) is BreakerState.OPEN


def test_too_few_calls_say_nothing() -> None:
    guard = breaker(Clock(), minimum_calls=5)
    calls(guard, "xxxx")
    assert state(guard) is BreakerState.CLOSED


def test_only_the_last_minute_counts() -> None:
    clock = Clock()
    guard = breaker(clock)
    calls(guard, "xxx")
    clock.now += 61
    calls(guard, "xxx")
    assert state(guard) is BreakerState.CLOSED
    calls(guard, "x")
    assert state(guard) is BreakerState.OPEN


def test_open_refuses_with_the_time_to_try_again() -> None:
    clock = Clock()
    guard = breaker(clock)
    calls(guard, "xxxx")
    clock.now += 20
    with pytest.raises(MeshError) as error:
        guard.before_call()
    assert error.value.reason == ErrorReason.ERROR_REASON_CIRCUIT_OPEN
    assert error.value.retry_after_s == pytest.approx(40)


def test_one_trial_each_minute_until_one_succeeds() -> None:
    clock = Clock()
    guard = breaker(clock)
    calls(guard, "xxxx")
    for _ in range(3):
        clock.now += 60
        guard.before_call()
        assert state(guard) is BreakerState.HALF_OPEN
        with pytest.raises(MeshError):  # only one at a time
            guard.before_call()
        guard.failed()
        assert state(guard) is BreakerState.OPEN
    clock.now += 60
    calls(guard, ".")
    assert state(guard) is BreakerState.CLOSED
    calls(guard, "xxx")  # what was before is forgotten
    assert state(guard) is BreakerState.CLOSED


def test_a_trial_that_was_given_up_may_be_repeated_at_once() -> None:
    clock = Clock()
    guard = breaker(clock)
    calls(guard, "xxxx")
    clock.now += 60
    guard.before_call()
    guard.abandoned()
    calls(guard, ".")
    assert state(guard) is BreakerState.CLOSED


def test_a_trial_that_never_ends_does_not_lock_the_breaker() -> None:
    clock = Clock()
    guard = breaker(clock)
    calls(guard, "xxxx")
    clock.now += 60
    guard.before_call()
    clock.now += 60
    calls(guard, ".")
    assert state(guard) is BreakerState.CLOSED


def test_calls_from_before_the_opening_change_nothing() -> None:
    clock = Clock()
    guard = breaker(clock)
    guard.before_call()  # still under way when the breaker opens
    calls(guard, "xxxx")
    guard.succeeded()
    assert state(guard) is BreakerState.OPEN
