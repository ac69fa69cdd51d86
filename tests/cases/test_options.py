"""Options of calls, steps and followers: refused where they are given, naming whose they are, before anything is sent."""

from __future__ import annotations

import enum
import os
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from taskq import TaskQ, chain, chord, group, task
from taskq.errors import ConfigurationError, MessageTooLarge
from tests.support import Stage

#: Brokers that nobody reaches: what is refused at the call is refused without them.
NOWHERE = {"sqlite": "sqlite:////nowhere/at/all.db", "amqp": "amqp://guest:guest@127.0.0.1:1//"}
CYCLE: list[Any] = []
CYCLE.append(CYCLE)


UNKNOWN: dict[str, Any] = {"quue": "mail"}
Queue: Any = enum.Enum("Queue", {"MAIL": "mail"}, type=str)


def add(a: int, b: int) -> int:
    return a + b


def note(*values: Any) -> Any:
    return values


class Wide:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.fixture(params=sorted(NOWHERE))
def app(request: pytest.FixtureRequest) -> TaskQ:
    app = TaskQ("cases", broker=NOWHERE[request.param], backend="sqlite:////nowhere/results.db")
    for function in (add, note):
        app.task(name=function.__name__)(function)
    return app


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"queue": 5}, "queue must be a str, not 5"),
    ({"queue": ""}, "queue must not be empty"),
    ({"queue": os.fsdecode(b"caf\xe9")}, "queue is 'caf\\udce9', which holds what UTF-8 cannot carry"),
    ({"queue": "a\0b"}, "null character"),
    ({"priority": True}, "priority must be a whole number from 0 to 9"),
    ({"priority": 10}, "priority must be a whole number from 0 to 9"),
    ({"priority": 2.5}, "priority must be a whole number from 0 to 9"),
    ({"countdown": "5"}, "countdown must be a number of seconds or a timedelta, not '5'"),
    ({"countdown": True}, "countdown must be a number of seconds or a timedelta, not True"),
    ({"countdown": float("nan")}, "countdown must be a number of seconds"),
    ({"countdown": 1e12}, "a hundred years of them at most, not 1000000000000.0"),
    ({"countdown": 10**400}, "a hundred years of them at most"),
    ({"countdown": 10**5000}, "a hundred years of them at most"),
    ({"countdown": timedelta.max}, "a hundred years of them at most"),
    ({"countdown": Wide()}, "countdown must be a number of seconds"),
    ({"eta": date(2030, 1, 1)}, "eta must be a datetime with a time zone, not datetime.date(2030, 1, 1)"),
    ({"eta": 5}, "eta must be a datetime"),
    ({"eta": datetime(2030, 1, 1)}, "eta needs a time zone"),
    ({"eta": datetime.max.replace(tzinfo=UTC)}, "more than a hundred years away"),
    ({"eta": datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))}, "before or after all time"),
    ({"eta": datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))}, "before or after all time"),
    ({"eta": datetime.now(UTC), "countdown": 1}, "exclude each other"),
    ({"expires": "soon"}, "expires must be a number of seconds or a timedelta"),
    ({"expires": 1.8e12}, "a hundred years of them at most"),
    ({"expires": datetime(2030, 1, 1)}, "expires needs a time zone"),
    ({"expires": date(2030, 1, 1)}, "expires must be a number of seconds"),
    ({"task_id": 5}, "task_id must be a str, not 5"),
    ({"task_id": True}, "task_id must be a str"),
    ({"task_id": b"5"}, "task_id must be a str"),
    ({"task_id": uuid.UUID(int=1)}, "write str(task_id)"),
    ({"task_id": ""}, "task_id must not be empty"),
    ({"task_id": "import-" + os.fsdecode(b"caf\xe9.csv")}, "UTF-8 cannot carry"),
    ({"task_id": "é" * 128}, "task_id is 256 bytes, over 255"),
    ({"ignore_result": 1}, "ignore_result must be True or False, not 1"),
    ({"time_limit": 0}, "time_limit must be a number of seconds above 0"),
    ({"time_limit": timedelta(seconds=-1)}, "time_limit must be a number of seconds above 0"),
    ({"soft_time_limit": "5"}, "soft_time_limit must be a number of seconds"),
    ({"time_limit": timedelta(seconds=5), "soft_time_limit": 5}, "soft_time_limit=5 must be below time_limit=5"),
    ({"headers": [("a", 1)]}, "headers must be a dict"),
    ({"headers": {5: 1}}, "the name of a header must be a text"),
    ({"headers": {"": 1}}, "the name of a header must be a text"),
    ({"headers": {"é" * 128: 1}}, "1 to 255 bytes"),
    ({"headers": {"x": float("nan")}}, "the header 'x' holds nan"),
    ({"headers": {"x": {"y": [float("inf")]}}}, "the header 'x' holds inf"),
    ({"headers": {"x": 2**63}}, "the header 'x' holds 9223372036854775808"),
    ({"headers": {"x": "\udce9"}}, "the header 'x' holds '\\udce9'"),
    ({"headers": {"x": datetime.now(UTC)}}, "the header 'x' holds datetime"),
    ({"headers": {"x": b"raw"}}, "the header 'x' holds b'raw'"),
    ({"headers": {"x": {"\udce9": 1}}}, "the header 'x' has the key '\\udce9'"),
    ({"headers": {"x": CYCLE}}, "the header 'x' is nested deeper"),
    ({"headers": {"id": "mine"}}, "the header 'id' is part of the protocol"),
    ({"headers": {"tq-crashes": 2}}, "the header 'tq-crashes' is part of the protocol"),
    ({"headers": {"x-death": []}}, "the header 'x-death' is part of the protocol"),
    ({"headers": {"CC": ["other"]}}, "the header 'CC' is part of the protocol"),
    ({"queue": "mail.dead"}, "queue is 'mail.dead', and taskq keeps names that end with '.dead' or '.returned'"),
    ({"queue": "mail.returned"}, "rename yours"),
    ({"queue": "taskq.trial.x"}, "rename yours"),
    ({"queue": "taskq_delayed_3"}, "rename yours"),
    ({"queue": "taskq.control.pauses"}, "rename yours"),
    ({"quue": "mail"}, "unknown option 'quue'; did you mean 'queue'?"),
    ({"retry_policy": {}}, "unknown option 'retry_policy'; there are countdown, "),
]

PLACES: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "apply_async": lambda app, wrong: app.tasks["note"].apply_async((1,), **wrong),
    "send_task": lambda app, wrong: app.send_task("note", [1], **wrong),
    "send_task, unknown here": lambda app, wrong: TaskQ("other", broker=app.settings.broker).send_task("note", **wrong),
    "send_many": lambda app, wrong: app.send_many([call(app, "add", 1, 2), told(app, wrong)]),
    "a later step": lambda app, wrong: chain(call(app, "add", 1, 2), told(app, wrong)).delay(),
    "a member": lambda app, wrong: group(call(app, "add", 1, 2), told(app, wrong)).delay(),
    "a member of a later group": lambda app, wrong: (call(app, "add", 1, 2) | group(told(app, wrong))).delay(),
    "the body": lambda app, wrong: chord([call(app, "add", 1, 2)], told(app, wrong)).delay(),
    "link": lambda app, wrong: call(app, "add", 1, 2).apply_async(link=told(app, wrong)),
    "link_error": lambda app, wrong: call(app, "add", 1, 2).on_error(told(app, wrong)).delay(),
    "an errback of a body's callback": lambda app, wrong: chord(
        [call(app, "add", 1, 2)], call(app, "add", 1).set(link=call(app, "note").on_error(told(app, wrong)))
    ).delay(),
}


def call(app: TaskQ, name: str, *args: Any) -> Any:
    return app.tasks[name].s(*args)


def told(app: TaskQ, options: dict[str, Any]) -> Any:
    return call(app, "note").set(**options)


@pytest.mark.parametrize(("wrong", "says"), OPTIONS, ids=[f"{n}-{says[:30]}" for n, (_, says) in enumerate(OPTIONS)])
@pytest.mark.parametrize("place", PLACES)
def test_wrong_options_are_refused_at_the_call_wherever_they_stand(
    app: TaskQ, place: str, wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        PLACES[place](app, wrong)
    assert "task 'note': " in str(refused.value)
    assert says in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("options", [{"queue": 5}, {"priority": "9"}, {"expires": "soon"}, {"ignore_result": 1}])
def test_a_decorator_is_checked_as_a_call_is(app: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"task 'odd': {next(iter(options))} must be"):
        app.task(name="odd", **options)(print)


ROUTES: list[tuple[dict[str, Any], str]] = [
    ({"queue": "x.returned"}, "rename yours"),
    ({"queue": "q" * 300}, "bytes"),
    ({"queue": "ü" * 130}, "bytes"),
    ({"queue": "a.*.b", "countdown": 5}, "wildcards"),
    ({"countdown": timedelta(days=9 * 365.25)}, "RabbitMQ holds a message for"),
    ({"priority": 5}, "quorum queues have no priorities"),
]


@pytest.mark.parametrize(("wrong", "says"), ROUTES, ids=[says[:20] for _, says in ROUTES])
@pytest.mark.parametrize("place", PLACES)
def test_what_rabbitmq_cannot_carry_is_refused_at_the_call(place: str, wrong: dict[str, Any], says: str) -> None:
    app = TaskQ("cases", broker=NOWHERE["amqp"], backend="sqlite:////nowhere/results.db")
    for function in (add, note):
        app.task(name=function.__name__)(function)
    with pytest.raises(ConfigurationError) as refused:
        PLACES[place](app, wrong)
    assert str(refused.value).startswith("task 'note': ")
    assert says in str(refused.value)


ARGUMENTS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda app: app.tasks["add"].apply_async(1, 2), "must be a tuple or a list of them, such as (1,), not 1"),
    (lambda app: app.tasks["add"].apply_async("ab"), "must be a tuple or a list of them, such as ('ab',)"),
    (lambda app: app.tasks["add"].apply_async({"a": 1, "b": 2}), "must be a tuple or a list"),
    (lambda app: app.tasks["add"].apply_async(memoryview(b"ab")), "must be a tuple or a list of them, such as (<memory"),
    (lambda app: app.tasks["add"].apply_async({1, 2}), "must be a tuple or a list"),
    (lambda app: app.tasks["add"].apply_async((1,), 2), "the keyword arguments of task 'add' must be a dict, not 2"),
    (lambda app: app.send_task("unknown", kwargs={1: 2}), "the name of a keyword argument of task 'unknown'"),
    (lambda app: app.send_task("unknown", kwargs={"\udce9": 2}), "the name of a keyword argument of task 'unknown'"),
    (lambda app: app.send_task("unknown", 5), "must be a tuple or a list"),
    (lambda app: chain(call(app, "note"), call(app, "note")).apply_async("ab"), "must be a tuple or a list"),
    (lambda app: call(app, "note").__or__(call(app, "note")).apply_async(7), "must be a tuple or a list"),
    (lambda app: chain(call(app, "note"), call(app, "note")).delay({1}), "JSON cannot carry set"),
]


@pytest.mark.parametrize(("send", "says"), ARGUMENTS, ids=map(str, range(len(ARGUMENTS))))
def test_what_is_no_list_of_arguments_is_refused_in_a_sentence(app: TaskQ, send: Callable[[Any], Any], says: str) -> None:
    with pytest.raises(TypeError) as refused:
        send(app)
    assert says in str(refused.value)


def loop(app: TaskQ) -> Any:
    first = call(app, "note")
    first.link(call(app, "note").on_error(first))
    return first


def deep(app: TaskQ) -> Any:
    flow: Any = call(app, "note")
    for _ in range(sys.getrecursionlimit()):
        flow = chain(flow, call(app, "note")).set(queue="x")
    return flow


ONE = {"task_id": "one"}
FLOWS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda app: call(app, "add", 1, 2).on_error(app.tasks["note"]), "write note.s"),
    (lambda app: call(app, "add", 1, 2).set(link=app.tasks["note"]).delay(), "task 'add': .* write note.s"),
    (lambda app: call(app, "add", 1, 2).set(link=[5]).delay(), "task 'add': 5 is no signature"),
    (lambda app: chain(call(app, "add", 1, 2), app.tasks["note"]), "write note.s"),
    (lambda app: group(app.tasks["note"]), "write note.s"),
    (lambda app: group([app.tasks["note"]]), "write note.s"),
    (lambda app: chord([call(app, "note")], app.tasks["note"]), "write note.s"),
    (lambda app: call(app, "note") | app.tasks["note"], "write note.s"),
    (lambda app: loop(app).delay(), "follows itself"),
    (lambda app: loop(app).clone(), "follows itself"),
    (lambda app: app.send_many([loop(app)]), "follows itself"),
    (lambda app: app.schedule("s", timedelta(hours=1), loop(app)), "schedule 's'"),
    (lambda app: deep(app).delay(), "nested too deeply"),
    (
        lambda app: chord([told(app, {"task_id": "one"}), told(app, {"task_id": "one"})], call(app, "note")).delay(),
        "two tasks of the workflow have the id 'one'",
    ),
    (
        lambda app: (told(app, {"task_id": "one"}) | told(app, {"task_id": "one"})).delay(),
        "two tasks of the workflow have the id 'one'",
    ),
    (lambda app: told(app, ONE).set(link=told(app, ONE)).delay(), "have the id 'one'"),
    (lambda app: told(app, ONE).on_error(told(app, ONE)).delay(), "have the id 'one'"),
    (lambda app: told(app, ONE).on_error(call(app, "note") | told(app, ONE)).delay(), "have the id 'one'"),
    (lambda app: told(app, ONE).on_error(call(app, "note").on_error(told(app, ONE))).delay(), "have the id 'one'"),
    (lambda app: chain(call(app, "note").on_error(told(app, ONE)), told(app, ONE)).delay(), "have the id 'one'"),
    (
        lambda app: (group(call(app, "note") for _ in range(1000)) | group(call(app, "note") for _ in range(1000))).delay(),
        "more than 67108864 bytes",
    ),
    (lambda app: chain(call(app, "note"), call(app, "note")).set(**UNKNOWN).delay(), "chain .*unknown option 'quue'"),
]


@pytest.mark.parametrize(("make", "says"), FLOWS, ids=map(str, range(len(FLOWS))))
def test_what_is_no_workflow_is_refused_in_a_sentence(app: TaskQ, make: Callable[[Any], Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make(app)


def test_the_default_queue_of_calls_is_none_of_taskqs_own() -> None:
    with pytest.raises(ConfigurationError, match=r"default_queue is 'mail\.dead'"):
        TaskQ("cases", broker="sqlite:////nowhere/x.db", default_queue="mail.dead")


def test_what_can_be_no_id_of_a_task_is_not_revoked(app: TaskQ) -> None:
    with pytest.raises(ConfigurationError, match="300 bytes, over 255"):
        app.revoke("i" * 300)


def test_headers_count_for_the_size_of_a_message(app: TaskQ) -> None:
    with pytest.raises((MessageTooLarge, ConfigurationError), match="task 'note': "):
        app.tasks["note"].apply_async(headers={"x": "h" * 1_100_000})
    with pytest.raises((MessageTooLarge, ConfigurationError), match="task 'note': "):
        chain(call(app, "add", 1, 2), told(app, {"headers": {"x": "h" * 1_100_000}})).delay()
    with pytest.raises(MessageTooLarge, match=r"task 'add': its message is \d+ bytes, over max_message_bytes"):
        chain(call(app, "add", 1, 2), call(app, "note", "x" * 1_100_000)).delay()


def test_what_is_right_is_sent(stage: Stage) -> None:
    """On every broker: seconds as a ``timedelta``, iterators, enums, moments at the end of time, long ids."""
    app = stage.client()
    task: Any = app.task(name="note", expires=timedelta(hours=1), time_limit=timedelta(minutes=1))(note)
    assert (task.defaults, task.time_limit) == ({"expires": 3600.0}, 60.0)
    task.apply_async(n for n in (1, 2))
    task.apply_async(map(str, (1, 2)), task_id="é" * 127)
    task.apply_async(iter([3]), soft_time_limit=timedelta(seconds=5), time_limit=10)
    task.apply_async(expires=datetime.max.replace(tzinfo=UTC), headers={"x": [1, {"y": (None, True, 2.5)}]})
    task.apply_async(None, None, countdown=timedelta(0), eta=None)
    first, second, third, fourth, _ = stage.drain(5)
    assert [message.body.split(b"]")[0] for message in (first, second, third)] == [b"[[1,2", b'[["1","2"', b"[[3"]
    assert (second.headers["id"], third.headers["timelimit"]) == ("é" * 127, [10, 5.0])
    assert fourth.headers["expires"] == "9999-12-31T23:59:59.999999+00:00"
    assert fourth.headers["x"] == [1, {"y": [None, True, 2.5]}]


def test_the_value_of_an_enum_is_the_queue(stage: Stage) -> None:
    app: Any = stage.client()
    task: Any = app.task(name="note", queue=Queue.MAIL)(note)
    assert (task.defaults["queue"], type(task.defaults["queue"])) == ("mail", str)
    assert app.routes() == {"note": "mail"}
    here: Any = enum.Enum("here", {"HERE": stage.queue}, type=str)
    task.apply_async(queue=here.HERE)
    assert len(stage.drain(1)) == 1


NO_CALLS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda app: app.send_many([app.tasks["add"]]), "write add.s"),
    (lambda app: app.send_many([5]), "5 is no signature"),
    (lambda app: app.send_many(app.tasks["add"]), "must be a list of signatures"),
    (lambda app: app.send_many(call(app, "add", 1, 2)), "must be a list of signatures"),
    (lambda app: app.send_many(None), "must be a list of signatures"),
    (lambda app: app.tasks["add"] | call(app, "add", 1), "write add.s"),
    (lambda app: app.tasks["add"] | app.tasks["add"], "write add.s"),
    (lambda app: 5 | call(app, "add", 1), "5 is no signature"),
    (lambda app: call(app, "add", 1).set(5), "task 'add': options have names, .* 5 has none"),
    (lambda app: call(app, "add", 1).set(foo=1), "task 'add': unknown option 'foo'"),
    (lambda app: group(call(app, "add", 1)).set(**UNKNOWN), "group .*unknown option 'quue'; did you mean 'queue'"),
    (lambda app: app.tasks["add"].map(5), "the items for task 'add' must be a list, not 5"),
    (lambda app: app.tasks["add"].map(None), "the items for task 'add' must be a list, not None"),
    (lambda app: app.tasks["add"].map("ab"), "must be a list, not 'ab'"),
    (lambda app: app.tasks["add"].starmap(5), "the items for task 'add' must be a list, not 5"),
    (lambda app: app.tasks["add"].starmap([1, 2]), "the arguments of each call of task 'add' must be a list, not 1"),
    (lambda app: app.tasks["add"].starmap(["ab", None]), "must be a list, not 'ab'"),
    (lambda app: app.tasks["add"].chunks([1], 1), "must be a list, not 1"),
    (lambda app: app.tasks["add"].chunks([(1, 2)], "2"), "a whole number from 1, not '2'"),
    (lambda app: app.tasks["add"].chunks([(1, 2)], 1.5), "a whole number from 1, not 1.5"),
    (lambda app: app.tasks["add"].chunks([(1, 2)], True), "a whole number from 1, not True"),
    (lambda app: app.task(add, note), "one function is made a task at a time, not 2"),
    (lambda _: task(add, "mail"), "one function is made a task at a time, not 2"),  # type: ignore[call-overload]
]


@pytest.mark.parametrize(("make", "says"), NO_CALLS, ids=map(str, range(len(NO_CALLS))))
def test_what_is_no_call_is_refused_in_a_sentence(app: TaskQ, make: Callable[[Any], Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make(app)
