"""Workflows: what a worker is given to compose, whoever wrote it, and what Celery's clients nest in other ways than ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import celery.canvas
import msgspec
import pytest
from celery import Celery
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq import TaskQ, chain, chord, group
from taskq.compose import NOBODY
from taskq.errors import ConfigurationError, DeadLettered, MessageError, MessageTooLarge
from taskq.launch import FAILURE, LONGEST_FAILURE, LONGEST_TRACEBACK, Failed, Follow, failed, gathered, launch, succeeded
from taskq.message import Message, Publication
from taskq.signature import Canvas, Signature
from taskq.step import Embed, Step, chain_of, group_of, settled
from taskq.testing import in_memory
from taskq.workers.ending import read_embed
from tests.conftest import staged
from tests.redis_server import Redis
from tests.servers import RabbitMQ
from tests.support import Stage, close_celery, eventually

#: Celery ships no types.
canvas: Any = celery.canvas
FLOWS = "tests.apps.flows:app"
FAILURE_OF_FAIL = {"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"}
NO = Failed("member", "fail", "FAILURE", FAILURE_OF_FAIL)


def route(task: str) -> str:
    return f"queue-of-{task}"


def call(task: str, *args: Any, **options: Any) -> Signature[Any]:
    return Signature(task, args, None, options)


def message(embed: Any = None, **headers: Any) -> Message:
    body = msgspec.json.encode(([], {}, {} if embed is None else embed))
    return Message(headers={"id": "member", "task": "one", **headers}, body=body)


def embed_of(canvas: Canvas[Any]) -> Any:
    """What follows the first task, as it travels."""
    return json.loads(launch(canvas.step(), (), NOBODY, route, 0.0).publish[0].message.body)[2]


ODD_OPTIONS: list[dict[str, Any]] = [
    {"countdown": "5"},
    {"countdown": 1.8e12},
    {"countdown": [5]},
    {"expires": 1.8e12},
    {"expires": True},
    {"expires": "soon"},
    {"expires": "9999-12-31T23:59:59-12:00"},
    {"eta": "0001-01-01T00:00:00"},
    {"eta": {"__type__": "datetime", "__value__": 5}},
    {"eta": 5},
    {"headers": [1]},
    {"headers": {"id": "other"}},
    {"headers": {"x": {"y": 2**64 - 1}}},
    {"queue": 5},
    {"queue": {}},
    {"priority": 77},
    {"time_limit": -1},
    {"ignore_result": "no"},
]


@pytest.mark.parametrize("odd", ODD_OPTIONS, ids=repr)
def test_a_follower_with_odd_options_is_refused_where_a_worker_composes_it(odd: dict[str, Any]) -> None:
    step = {"task": "note", "options": odd}
    for embed in ({"callbacks": [step]}, {"chain": [step]}):
        what = message(embed)
        with pytest.raises((MessageError, ConfigurationError)):
            succeeded(what, read_embed(what), 3, route, 0.0)
    what = message({"errbacks": [step, {"task": "told"}], "chain": [step], "chord": {"task": "total"}}, group="g")
    follow = failed(what, read_embed(what), NO, route, 0.0)
    assert [publication.message.headers["task"] for publication in follow.publish] == ["told"], "the other one is told"
    assert [ended.part.chord for ended in follow.members] == ["g"]
    what = message({"chord": step}, group="g", group_index=0)
    [member] = succeeded(what, read_embed(what), 3, route, 0.0).members
    with pytest.raises((MessageError, ConfigurationError)):
        gathered(member, [member.part], route, 0.0)
    broken = msgspec.structs.replace(member.part, status="FAILURE", result=b'"the body cannot be sent"')
    gathered(member, [broken], route, 0.0)


@pytest.mark.parametrize("task_id", [5, True, ["x"], {"a": 1}, "i" * 300, "\0"])
def test_what_is_no_id_is_refused_before_the_task_runs(task_id: Any) -> None:
    with pytest.raises(MessageError, match="is no id of task 'note'"):
        settled(Step(task="note", options={"task_id": task_id}))


@pytest.mark.parametrize("odd", [2**31, True, [], {}, 2**63, "\0"])
def test_ids_in_headers_that_are_none_are_left_out(odd: Any) -> None:
    embed = embed_of(chain(call("one"), call("note")))
    for name in ("root_id", "parent_id", "group", "group_index"):
        what = message(embed, **{name: odd})
        [publication] = succeeded(what, read_embed(what), 3, route, 0.0).publish
        headers = publication.message.headers
        assert (headers["root_id"], headers["parent_id"], headers["group"]) == ("member", "member", None)
    what = message({"chord": {"task": "total"}}, group="g", group_index=odd)
    [member] = succeeded(what, read_embed(what), 3, route, 0.0).members
    assert member.part.index is None
    step = Step(task="note", options={"task_id": "n", "group_id": odd, "group_index": odd, "reply_to": odd})
    [publication] = launch(step, (), NOBODY, route, 0.0).publish
    assert (publication.message.headers["group"], publication.message.reply_to) == (None, None)


@pytest.mark.parametrize("count", [True, 2**31, 2**63 - 1, 2**70, -1, 1.5, "5", None])
def test_counters_are_bounded(count: Any) -> None:
    what = message(retries=count, **{"tq-crashes": count, "tq-deliveries": count, "tq-attempts": count})
    assert 0 <= what.count("retries") < 2**31
    assert 1 <= what.attempt < 2**31
    assert what.count("retries") == (2**31 - 1 if type(count) is int and count > 0 else 0)


def deep(levels: int) -> Any:
    step: Any = {"task": "note"}
    for _ in range(levels):
        step = {"task": "celery.chain", "subtask_type": "chain", "kwargs": {"tasks": [step]}, "options": {"queue": "x"}}
    return step


def test_endless_nesting_is_an_error_and_not_the_end() -> None:
    step = msgspec.convert(deep(20_000), Step)
    with pytest.raises(MessageError):
        settled(step)
    with pytest.raises(MessageError):
        launch(step, (), NOBODY, route, 0.0)
    embed = Embed(callbacks=[step], errbacks=[step], chain=[step], chord=step)
    with pytest.raises(MessageError):
        succeeded(message(), embed, 3, route, 0.0)
    follow = failed(message(group="g"), embed, NO, route, 0.0)
    assert len(follow.members) == 1, "it is counted all the same"


def test_an_errback_is_told_no_more_than_a_header_carries() -> None:
    embed = Embed(errbacks=[Step(task="told")])
    odd: list[Any] = [["错误" * 100_000], ["y" * 200_000, 1], [2**70], [float("nan")], [[[]] * 10_000], "text", None]
    for args in odd:
        what = Failed("member", "fail", "FAILURE", {**FAILURE_OF_FAIL, "exc_message": args}, "错误\udce9" * 100_000)
        [publication] = failed(message(), embed, what, route, 0.0).publish
        told = publication.message.headers[FAILURE]
        assert len(msgspec.json.encode(told)) < LONGEST_FAILURE + LONGEST_TRACEBACK + 1000
        assert told["failure"]["exc_type"] == "ValueError"
        msgspec.convert(told, Failed)


def test_what_the_broker_could_not_carry_is_refused_where_it_is_composed() -> None:
    def check(publication: Publication) -> None:
        if publication.message.headers["task"] == "large":
            raise MessageTooLarge("large")
        if publication.queue == "bad":
            raise ConfigurationError("bad")

    for bad in ({"task": "large"}, {"task": "note", "options": {"queue": "bad"}}):
        what = message({"chain": [bad], "errbacks": [bad, {"task": "told"}]})
        with pytest.raises(ConfigurationError, match=r"large|bad"):
            succeeded(what, read_embed(what), 3, route, 0.0, check)
        [told] = failed(what, read_embed(what), NO, route, 0.0, check).publish
        assert told.message.headers["task"] == "told"


def test_a_worker_refuses_what_would_fill_the_broker() -> None:
    body = group_of([Step(task="note") for _ in range(3000)])
    flow = chain_of([Step(task="one"), group_of([Step(task="one") for _ in range(3000)]), body])
    [first] = launch(flow, (), NOBODY, route, 0.0).publish
    with pytest.raises(ConfigurationError, match="put a task between two large groups"):
        succeeded(first.message, read_embed(first.message), 1, route, 0.0)


# What has nobody to wait for, and what is copied


def test_a_workflow_of_nothing_has_the_empty_result(memory: TaskQ) -> None:
    nothing: Any = group(())
    flows: list[Any] = [nothing, group(nothing), chain(nothing), chord(nothing, nothing), chain(nothing, group(nothing))]
    for flow in flows:
        assert flow.delay().get(0) == flow.apply_async(countdown=5).get(0) == []
        assert memory.send_many([flow])[0].get(0) == []


def test_a_clone_shares_nothing_that_can_be_changed() -> None:
    def made() -> list[Any]:
        first = call("a", headers={"x": 1}).on_error(call("told"))
        first.link(call("b"))
        return [first, chain(first, call("b")), group(call("a"), call("b")), chord([call("a")], call("b"))]

    for original, same in zip(made(), made(), strict=True):
        copy = original.clone()
        assert copy.step() == original.step()
        for part in (copy, *getattr(copy, "steps", ()), *getattr(copy, "members", ()), getattr(copy, "body", copy)):
            part.set(queue="x", countdown=5)
            part.options.setdefault("headers", {})["y"] = 2
            for follower in (*part.options.get("link", ()), *part.options.get("link_error", ())):
                follower.set(queue="x")
        assert copy.step() != original.step() == same.step()


# On real workers


@pytest.mark.parametrize("odd", [{"countdown": 1.8e12}, {"queue": 5}, {"expires": "soon"}, {"headers": {"id": 1}}], ids=repr)
def test_what_a_follower_cannot_be_is_its_own_workflows_end(stage: Stage, odd: dict[str, Any]) -> None:
    """Sent by somebody who does not check: the worker lives, and the neighbours run."""
    step = {"task": "note", "options": odd}
    ours = {"callbacks": [step]}, {"errbacks": [step]}, {"chain": [step]}
    for number, embed in enumerate(ours):
        name = "fail" if "errbacks" in embed else "one"
        body = msgspec.json.encode(([] if name == "fail" else [1], {}, embed))
        stage.publish(Message(headers={"id": f"odd-{number}", "task": name}, body=body, correlation_id=f"odd-{number}"))
    client = stage.client()
    with stage.worker(FLOWS, "-c", "1") as worker:
        assert client.send_task("add", [1, 2]).get(15) == 3
        with pytest.raises(ValueError, match="no"):
            client.result("odd-1").get(15)
        eventually(lambda: stage.depth() == 0, "nothing is left to do")
        assert worker.logged("errback_not_sent")
        assert not worker.logged("child_died")


def test_headers_of_a_member_that_are_none_do_no_harm(stage: Stage) -> None:
    chord_of_one = {"task": "total", "options": {"task_id": "body"}}
    embed = {"chord": chord_of_one}
    odd_ones: list[dict[str, Any]] = [{"root_id": 5}, {"group_index": True}, {"parent_id": []}, {"retries": 2**63 - 1}]
    for number, odd in enumerate(odd_ones):
        headers = {"id": f"odd-{number}", "task": "one", "group": f"g-{number}", **odd}
        stage.publish(Message(headers=headers, body=msgspec.json.encode(([1], {}, embed)), correlation_id=f"odd-{number}"))
    client = stage.client()
    with stage.worker(FLOWS, "-c", "1") as worker:
        for number in range(3):
            with pytest.raises(DeadLettered, match="which it cannot be"):
                client.result(f"odd-{number}").get(15)
        assert client.result("odd-3").get(15) == 1
        assert client.send_task("add", [1, 2]).get(15) == 3
        assert not worker.logged("child_died")


@pytest.fixture
def shared(rabbitmq: RabbitMQ, redis: Redis, queue: str, tmp_path: Path) -> Iterator[Stage]:
    """What Celery's clients and our workers share."""
    yield from staged(Stage(rabbitmq.url, queue, tmp_path, {"backend": redis.url, "queue_type": "classic"}))


@pytest.fixture
def client(shared: Stage) -> Iterator[Any]:
    client: Any = Celery("shop", broker=shared.broker, backend=shared.settings["backend"], set_as_current=False)
    client.conf.task_default_queue = shared.queue
    yield client
    close_celery(client)


@pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")
def test_a_celery_clients_chords_come_to_what_celery_makes_of_them(shared: Stage, client: Any) -> None:
    def theirs(task: str, *args: Any, **kwargs: Any) -> Any:
        return client.signature(task, args=args, kwargs=kwargs)

    with shared.worker(FLOWS):
        pair = canvas.group([theirs("note"), theirs("note")])
        ends_in_a_group = canvas.chain(theirs("one", 1), pair, app=client)
        header = [ends_in_a_group, theirs("one", 7)]
        assert canvas.chord(header, theirs("note"), app=client).apply_async().get(timeout=30) == [[[[1], [1]], 7]]

        inner = canvas.chord([theirs("one", 1), theirs("fail")], theirs("total"), app=client)
        outer = canvas.chord([inner, theirs("one", 2)], theirs("note"), app=client)
        outer.link_error(theirs("told", name="nested"))
        outer_id = outer.apply_async().id
        assert [told["task_id"] for told in shared.traced("told", name="nested")] == [outer_id]

        body = canvas.group([theirs("note"), theirs("note")])
        both = canvas.chord([theirs("one", 1), theirs("fail")], body, app=client).apply_async()
        for member in both.results:
            with pytest.raises(ValueError, match="no"):
                member.get(timeout=15)
        eventually(lambda: shared.depth() == 0, "nothing is left to do")
        assert len(shared.traces("told", name="nested")) == 1


# Any tree of signatures, and any embed

ODD: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, True, False, "", "x", "\0", "2020-01-01T00:00:00", 0, -1, 5, 2**31, 2**63, 1.8e12, 0.5, [], {}]),
    st.sampled_from(
        [[[]], {"a": []}, {"task": "t"}, [{"task": 5}], {"__type__": "datetime", "__value__": "x"}, "celery.chain"]
    ),
    st.integers(),
    st.text(max_size=3),
)
OPTIONS = ("queue", "priority", "countdown", "eta", "expires", "task_id", "ignore_result", "time_limit", "soft_time_limit")
KNOWN = st.sampled_from([*OPTIONS, "headers", "link", "link_error"])
NAMES = KNOWN | st.just("odd")
CALLS: st.SearchStrategy[Any] = st.builds(
    lambda options: Signature("t", (), {}, options), st.dictionaries(NAMES, ODD, max_size=2)
)
TREES: st.SearchStrategy[Any] = st.recursive(
    CALLS,
    lambda trees: st.one_of(
        st.lists(trees, min_size=1, max_size=3).map(chain),
        st.lists(trees, max_size=3).map(group),
        st.tuples(st.lists(trees, max_size=2), trees).map(lambda parts: chord(parts[0], parts[1])),
        st.tuples(trees, st.dictionaries(KNOWN, st.one_of(ODD, trees), max_size=2)).map(lambda pair: pair[0].set(**pair[1])),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def memory() -> Iterator[TaskQ]:
    with in_memory(TaskQ("any")) as app:
        yield app


@given(TREES)
@settings(max_examples=100)
def test_any_tree_of_signatures_is_sent_or_refused(memory: TaskQ, tree: Any) -> None:
    try:
        [result] = memory.send_many([tree])
    except (ConfigurationError, TypeError):
        return
    assert result.id


def mutated(value: Any, draw: Any) -> Any:
    """The value with something in it replaced."""
    inside = sorted(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inside or draw(st.integers(0, 4)) == 0:
        return draw(ODD)
    key = draw(st.sampled_from(inside))
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = mutated(value[key], draw)
    return copy


GENUINE = [
    embed_of(chain(call("one"), call("note", queue="x", countdown=5.0), group(call("a"), call("b")), call("total"))),
    embed_of(chord([call("one"), group(call("a"), chain(call("b"), call("c")))], call("total").on_error(call("told")))),
    embed_of(chain(call("one").on_error(call("told")), chord([call("a")], chain(call("b"), group(call("c"), call("d")))))),
    embed_of(call("one", expires=60.0).set(link=chain(call("a"), call("b")), link_error=group(call("c"), call("d")))),
]


@given(st.data(), st.sampled_from(GENUINE), st.dictionaries(st.sampled_from(["id", "root_id", "group", "group_index"]), ODD))
@settings(max_examples=300)
def test_any_embed_is_followed_or_refused(data: st.DataObject, embed: Any, headers: dict[str, Any]) -> None:
    for _ in range(data.draw(st.integers(0, 3))):
        embed = mutated(embed, data.draw)
    what = message(embed, **headers)
    try:
        follows = read_embed(what)
    except MessageError:
        return
    composed: list[Follow] = []
    composed.append(failed(what, follows, NO, route, 0.0))
    with suppress(MessageError, ConfigurationError):
        composed.append(succeeded(what, follows, 3, route, 0.0))
    for member in [member for follow in composed for member in follow.members]:
        for status in ("SUCCESS", "FAILURE"):
            part = msgspec.structs.replace(member.part, status=status)
            with suppress(MessageError, ConfigurationError):
                composed.append(gathered(member, [part], route, 0.0))
    for follow in composed:
        # It is what the pipe carries to the supervisor.
        msgspec.msgpack.encode(follow)
        assert all(isinstance(end.id, str) for end in follow.ends)
