"""Retries: which errors are worth one, how many there are, and when."""

from __future__ import annotations

import pytest
from celery.utils.time import get_exponential_backoff_interval
from hypothesis import given
from hypothesis import strategies as st

from taskq.errors import Ignore, MaxRetriesExceeded, Reject, Retry, Terminated
from taskq.retry import RetryPolicy, policy_of

retries = st.integers(0, 10**6)
seconds = st.floats(0.001, 10**9)


def backoff(factor: float, maximum: float = 600.0, *, jitter: bool = False) -> RetryPolicy:
    return RetryPolicy(retry_backoff=factor, retry_backoff_max=maximum, retry_jitter=jitter)


def test_nothing_is_retried_by_default() -> None:
    assert not RetryPolicy().wants(ValueError())


def test_classes_stand_for_their_subclasses_and_the_refused_ones_win() -> None:
    policy = RetryPolicy(autoretry_for=(OSError,), dont_autoretry_for=(FileNotFoundError,))
    assert [policy.wants(error) for error in (OSError(), TimeoutError(), FileNotFoundError(), ValueError())] == [
        True,
        True,
        False,
        False,
    ]


def test_a_function_decides_about_what_no_class_names() -> None:
    asked: list[BaseException] = []

    def worth_it(error: BaseException) -> bool:
        asked.append(error)
        return "later" in str(error)

    policy = RetryPolicy(autoretry_for=(OSError,), dont_autoretry_for=(KeyError,), retry_on=worth_it)
    later, never = ValueError("later"), ValueError("never")
    assert policy.wants(later)
    assert not policy.wants(never)
    assert policy.wants(OSError())
    assert not policy.wants(KeyError("later"))
    assert asked == [later, never]


def test_what_the_function_raises_is_the_callers_business() -> None:
    def broken(error: BaseException) -> bool:
        raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        RetryPolicy(retry_on=broken).wants(ValueError())


@pytest.mark.parametrize("said", [Retry(), Reject("bad"), Ignore(), MaxRetriesExceeded(), Terminated()])
def test_what_a_task_raises_on_purpose_is_no_error(said: BaseException) -> None:
    policy = RetryPolicy(autoretry_for=(BaseException,), retry_on=lambda _: True)
    assert policy.wants(KeyboardInterrupt())
    assert not policy.wants(said)


def test_there_are_as_many_retries_as_the_policy_or_the_attempt_says() -> None:
    policy = RetryPolicy(max_retries=3)
    assert [policy.allows(count) for count in (0, 2, 3, 4)] == [True, True, False, False]
    assert [policy.allows(1, 1), policy.allows(4, 5), policy.allows(0, 0)] == [False, True, False]
    assert RetryPolicy(max_retries=None).allows(10**9)
    assert not RetryPolicy(max_retries=None).allows(5, 5)
    assert not RetryPolicy(max_retries=0).allows(0)


@given(retries, st.floats(0, 10**9))
def test_without_a_backoff_the_delay_is_always_the_same(count: int, delay: float) -> None:
    assert RetryPolicy(default_retry_delay=delay).delay(count) == delay


@given(retries, seconds, seconds)
def test_a_backoff_doubles_up_to_its_maximum(count: int, factor: float, maximum: float) -> None:
    policy = backoff(factor, maximum)
    delay, following = policy.delay(count), policy.delay(count + 1)
    assert 0 < delay <= following <= maximum
    assert following == min(maximum, 2 * delay)
    assert policy.delay(0) == min(maximum, factor)


@given(retries, seconds, seconds, st.floats(0, 1, exclude_max=True))
def test_jitter_is_a_moment_from_now_until_then(count: int, factor: float, maximum: float, chance: float) -> None:
    longest = backoff(factor, maximum).delay(count)
    policy = backoff(factor, maximum, jitter=True)
    assert policy.delay(count, lambda: chance) == chance * longest
    assert 0 <= policy.delay(count) <= longest


def test_jitter_spreads() -> None:
    delays = sorted(backoff(64.0, jitter=True).delay(0) for _ in range(1000))
    assert delays[0] < 16
    assert delays[-1] > 48
    assert len(set(delays)) > 900


@given(st.integers(0, 50), st.integers(1, 1000), st.integers(1, 10_000))
def test_whole_seconds_are_celerys(count: int, factor: int, maximum: int) -> None:
    assert backoff(factor, maximum).delay(count) == get_exponential_backoff_interval(factor, count, maximum)


def test_a_decorators_options_make_a_policy() -> None:
    assert policy_of({"queue": "mail", "bind": True}) == RetryPolicy()
    assert policy_of({"retry_backoff": True}).delay(0, lambda: 0.5) == 0.5
    assert policy_of({"retry_backoff": False}) == RetryPolicy()
    assert policy_of({"autoretry_for": [OSError], "max_retries": None}) == RetryPolicy(None, autoretry_for=(OSError,))
