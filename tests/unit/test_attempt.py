"""Attempts: what a running task can say about its next one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from taskq.attempt import Attempt
from taskq.errors import ConfigurationError, MaxRetriesExceeded, Reject, Retry
from taskq.retry import RetryPolicy

FIRST = Attempt("id-1", "shop.pay")
LAST = Attempt("id-1", "shop.pay", retries=3)
DIRECT = Attempt("id-1", "shop.pay", called_directly=True)
EAGER = RetryPolicy(autoretry_for=(Exception,), max_retries=10)


def test_a_retry_says_why_and_when() -> None:
    error = ValueError("x")
    with pytest.raises(Retry) as raised:
        FIRST.retry(error, countdown=5, max_retries=9)
    assert (raised.value.exc, raised.value.countdown, raised.value.max_retries) == (error, 5.0, 9)
    assert str(raised.value) == "retry in 5 s: ValueError('x')"
    with pytest.raises(Retry) as raised:
        raise FIRST.retry()
    assert (raised.value.exc, raised.value.countdown, raised.value.max_retries) == (None, None, None)


def test_the_error_that_is_being_handled_is_the_reason() -> None:
    error = ValueError("x")
    with pytest.raises(Retry) as raised:
        try:
            raise error
        except ValueError:
            FIRST.retry()
    assert raised.value.exc is error


def test_a_retry_may_be_for_a_moment() -> None:
    verdict = FIRST.retry(eta=datetime.now(UTC) + timedelta(minutes=1), throw=False)
    assert verdict.countdown == pytest.approx(60, abs=1)
    assert FIRST.retry(eta=datetime.now(UTC) - timedelta(minutes=1), throw=False).countdown == 0
    with pytest.raises(ConfigurationError, match="time zone"):
        FIRST.retry(eta=datetime(2024, 5, 6))
    with pytest.raises(ConfigurationError, match="exclude each other"):
        FIRST.retry(countdown=0, eta=datetime.now(UTC))


@pytest.mark.parametrize("countdown", [float("nan"), float("inf")])
def test_a_countdown_is_a_number_of_seconds(countdown: float) -> None:
    with pytest.raises(ConfigurationError, match="number of seconds"):
        FIRST.retry(countdown=countdown)


def test_without_retries_left_the_error_is_raised() -> None:
    error = ValueError("x")
    with pytest.raises(ValueError, match="x") as raised:
        LAST.retry(error)
    assert raised.value is error
    with pytest.raises(ValueError, match="x"):
        LAST.retry(error, throw=False)
    with pytest.raises(ValueError, match="x"):
        FIRST.retry(error, max_retries=0)
    with pytest.raises(Retry):
        LAST.retry(error, max_retries=4)


def test_without_an_error_given_there_is_one_that_says_so() -> None:
    with pytest.raises(MaxRetriesExceeded, match=r"^task 'shop\.pay' \(id-1\) .* max_retries=3"):
        LAST.retry()
    # Celery's tasks tell this from the error that they are handling.
    handled = ValueError("x")
    with pytest.raises(MaxRetriesExceeded) as raised:
        try:
            raise handled
        except ValueError:
            LAST.retry()
    assert raised.value.__cause__ is handled


def test_what_a_task_gave_up_on_is_not_retried_by_its_policy() -> None:
    origin = KeyError("k")
    error = ValueError("x")
    error.__cause__ = origin
    assert EAGER.wants(error)
    with pytest.raises(ValueError, match="x"):
        Attempt("id-1", "shop.pay", retries=1, retry_policy=EAGER).retry(error, max_retries=1)
    assert not EAGER.wants(error)
    assert isinstance(error.__cause__, MaxRetriesExceeded)
    assert error.__cause__.__cause__ is origin


def test_a_plain_call_raises_what_went_wrong() -> None:
    error = ValueError("x")
    with pytest.raises(ValueError, match="x"):
        DIRECT.retry(error)
    with pytest.raises(ValueError, match="invalid literal"):
        try:
            int("y")
        except ValueError:
            DIRECT.retry(throw=False)
    with pytest.raises(Retry):
        DIRECT.retry(countdown=5)


def test_a_rejection_has_a_text() -> None:
    assert (Reject("bad").reason, Reject("bad").requeue, Reject().reason, Reject(None).reason) == ("bad", False, "", "")
    assert (Reject(ValueError("x"), requeue=True).reason, Reject(requeue=True).requeue) == ("ValueError('x')", True)
