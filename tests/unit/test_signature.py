"""Signatures: what a call becomes on the wire."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery

from taskq import Attempt, TaskQ
from taskq.compose import NOBODY, Family
from taskq.errors import ConfigurationError, NotBound
from taskq.launch import launch
from taskq.message import Publication
from taskq.signature import Signature
from taskq.step import settled

NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


def composed(*args: Any, parent: Attempt | None = None, **options: Any) -> Publication:
    family = NOBODY if parent is None else Family(parent.id, parent.root_id or parent.id)
    step = settled(Signature("shop.pay", args, {"currency": "EUR"}, options).step())
    [publication] = launch(step, (), family, lambda _: "default", NOW.timestamp()).publish
    return publication


def refusal(**options: Any) -> str:
    with pytest.raises(ConfigurationError) as refused:
        composed(1, **options)
    return str(refused.value)


def test_a_call_is_a_message_of_celerys_protocol_2() -> None:
    publication = composed(1, "x")
    message = publication.message
    headers = message.headers
    assert json.loads(message.body) == [
        [1, "x"],
        {"currency": "EUR"},
        {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
    ]
    assert (publication.queue, publication.delay) == ("default", 0.0)
    assert (message.content_type, message.content_encoding, message.priority) == ("application/json", "utf-8", None)
    assert (headers["lang"], headers["task"], headers["retries"]) == ("py", "shop.pay", 0)
    assert headers["id"] == headers["root_id"] == message.correlation_id
    assert [headers[name] for name in ("parent_id", "group", "eta", "expires")] == [None] * 4
    assert headers["timelimit"] == [None, None]
    assert headers["ignore_result"] is False


def test_what_celery_itself_sends_has_the_same_body_and_no_other_kinds_of_values() -> None:
    theirs = Celery("shop", set_as_current=False).amqp.as_task_v2(
        "id-1", "shop.pay", [1], {"currency": "EUR"}, ignore_result=False
    )
    ours = composed(1, task_id="id-1").message
    args, kwargs, embed = json.loads(ours.body)
    assert (args, kwargs, embed) == tuple(theirs.body)
    shared = theirs.headers.keys() & ours.headers.keys()
    assert {"lang", "task", "id", "root_id", "parent_id", "group", "retries", "eta", "expires", "timelimit", "origin"} <= shared
    for name in shared - {"origin"}:
        assert (name, ours.headers[name]) == (name, theirs.headers[name])
    assert ours.correlation_id == theirs.properties["correlation_id"]


def test_each_call_has_an_id_of_its_own_unless_it_is_given_one() -> None:
    assert composed(1).message.headers["id"] != composed(1).message.headers["id"]
    assert composed(1, task_id="mine").message.correlation_id == "mine"


def test_a_call_made_by_a_task_names_its_parent_and_root() -> None:
    for parent, root in ((Attempt("p", "t"), "p"), (Attempt("p", "t", root_id="r"), "r")):
        headers = composed(1, parent=parent).message.headers
        assert (headers["parent_id"], headers["root_id"]) == ("p", root)


def test_a_delay_is_a_countdown_or_a_moment() -> None:
    for options in ({"countdown": 90}, {"eta": NOW + timedelta(seconds=90)}, {"countdown": 90.0}):
        publication = composed(1, **options)
        assert publication.delay == pytest.approx(90)
        assert publication.message.headers["eta"] == "2024-05-06T07:09:39+00:00"
    for options in ({"countdown": 0}, {"countdown": -5}, {"eta": NOW - timedelta(days=1)}):
        publication = composed(1, **options)
        assert (publication.delay, publication.message.headers["eta"]) == (0.0, None)


def test_an_expiry_is_seconds_or_a_moment() -> None:
    for expires in (60, 60.0, NOW + timedelta(seconds=60)):
        assert composed(1, expires=expires).message.headers["expires"] == "2024-05-06T07:09:09+00:00"


def test_time_limits_are_in_celerys_order() -> None:
    for options, limits in (
        ({"time_limit": 30, "soft_time_limit": 20.5}, [30, 20.5]),
        ({"time_limit": 30}, [30, None]),
        ({"soft_time_limit": 20}, [None, 20]),
    ):
        theirs = Celery("shop", set_as_current=False).amqp.as_task_v2("1", "shop.pay", **options)
        assert composed(1, **options).message.headers["timelimit"] == limits == theirs.headers["timelimit"]


@pytest.mark.parametrize("name", ["time_limit", "soft_time_limit"])
@pytest.mark.parametrize("limit", [0, -1.0, True, "5", float("nan"), float("inf"), [5]])
def test_impossible_time_limits_are_refused(name: str, limit: Any) -> None:
    assert refusal(**{name: limit}).startswith(f"task 'shop.pay': {name} must be a number of seconds")


def test_a_soft_time_limit_that_is_never_reached_is_refused() -> None:
    assert "soft_time_limit=5 must be below time_limit=5" in refusal(time_limit=5, soft_time_limit=5.0)


def test_impossible_options_are_refused() -> None:
    assert "exclude each other" in refusal(countdown=1, eta=NOW)
    assert "time zone" in refusal(eta=NOW.replace(tzinfo=None))
    assert "time zone" in refusal(expires=NOW.replace(tzinfo=None))
    assert "number of seconds" in refusal(countdown=float("nan"))
    assert "number of seconds" in refusal(countdown=float("inf"))
    assert "unknown option 'retry'" in refusal(retry=True)
    assert "'task' is part of the protocol" in refusal(headers={"task": "x"})
    for priority in (-1, 10, 1.5, True, "5"):
        assert "from 0 to 9" in refusal(priority=priority)


def test_options_reach_the_message() -> None:
    publication = composed(1, queue="fast", priority=9, ignore_result=True, headers={"trace": "abc"})
    message = publication.message
    assert (publication.queue, message.priority) == ("fast", 9)
    assert (message.headers["ignore_result"], message.headers["trace"]) == (True, "abc")


def test_a_signature_is_changed_in_place_and_a_clone_for_itself() -> None:
    first = Signature[int]("add", (1, 2))
    faster = first.clone()
    assert faster.set(queue="fast", priority=3) is faster
    assert (first.options, faster.options) == ({}, {"queue": "fast", "priority": 3})
    assert faster.clone().set(priority=4).options == {"queue": "fast", "priority": 4}
    assert faster == Signature[int]("add", (1, 2), {}, {"queue": "fast", "priority": 3})
    with pytest.raises(NotBound, match=r"add\(1, 2\) belongs to no app"):
        first.delay()


def test_what_the_call_says_wins_over_what_the_task_says() -> None:
    app = TaskQ("unit", broker="sqlite:////nowhere/unit.db")

    @app.task(queue="slow", priority=1, expires=60, ignore_result=True)
    def job() -> None:
        """Does nothing."""

    assert job.s().options == {"queue": "slow", "priority": 1, "expires": 60, "ignore_result": True}
    told = job.signature(queue="fast", priority=None, ignore_result=False)
    assert told.options == {"queue": "fast", "priority": 1, "expires": 60, "ignore_result": False}
