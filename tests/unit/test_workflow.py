"""Workflows as values: what they become on the wire, and what follows the end of a task."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import celery.canvas
import msgspec
import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from taskq import Chain, TaskQ, chain, chord, group
from taskq.compose import NOBODY
from taskq.errors import ConfigurationError, MessageError
from taskq.launch import FAILURE, Failed, Follow, failed, gathered, launch, succeeded
from taskq.message import Publication
from taskq.plan import plan_of, root_of
from taskq.results.store import Part
from taskq.signature import Canvas, Signature
from taskq.step import Embed, Step, chain_of, chord_of, group_of, settled, step_of
from taskq.workers.ending import read_embed

#: Celery ships no types.
canvas: Any = celery.canvas
app = TaskQ("unit", broker="sqlite:////nowhere/unit.db")


@app.task(name="add")
def add(a: int, b: int) -> int:
    return a + b


@app.task(name="total", queue="sums")
def total(numbers: list[int]) -> int:
    return sum(numbers)


def route(task: str) -> str:
    return f"queue-of-{task}"


def begun(canvas: Canvas[Any], *values: Any) -> Follow:
    return launch(canvas.step(), values, NOBODY, route, 0.0)


def bodies(follow: Follow) -> list[Any]:
    return [json.loads(publication.message.body) for publication in follow.publish]


def embed(publication: Publication) -> Embed:
    return read_embed(publication.message)


def task_ids(value: Any) -> Iterator[str]:
    match value:
        case dict():
            if isinstance(value.get("task_id"), str):
                yield value["task_id"]
            for inner in value.values():
                yield from task_ids(inner)
        case list():
            for inner in value:
                yield from task_ids(inner)


@pytest.fixture
def theirs() -> Any:
    """A Celery application that keeps what it sends."""
    client: Any = Celery("unit", broker="memory://", backend="cache+memory://", set_as_current=False)
    client.sent = []
    client.call = lambda name, *args: client.signature(name, args=args)
    client.amqp.__dict__["send_task_message"] = lambda _, name, message, **__: client.sent.append((name, message))
    client.backend.set_chord_size = lambda *_: None
    client.backend.apply_chord = lambda *_, **__: None
    return client


def like_celery(follow: Follow, sent: list[tuple[str, Any]]) -> None:
    """What we send is what Celery sends, but for the ids, of which there are as many in the same places."""
    assert len(follow.publish) == len(sent)
    ours = [
        [publication.message.headers["task"], publication.message.headers.get("group_index"), body]
        for publication, body in zip(follow.publish, bodies(follow), strict=True)
    ]
    celerys = [[name, message.headers["group_index"], json.loads(json.dumps(message.body))] for name, message in sent]
    # In which order members are sent is nobody's business.
    ours.sort(key=arguments)
    celerys.sort(key=arguments)
    assert anonymous(ours) == anonymous(celerys)


def arguments(sent: list[Any]) -> str:
    return json.dumps(sent[2][0])


def anonymous(value: Any, names: dict[str, str] | None = None) -> Any:
    """The value with each id replaced by when it first comes, and without what only Celery writes."""
    names = {} if names is None else names
    match value:
        case dict():
            dropped = {"reply_to", "add_to_parent"} | {name for name in ("root_id", "parent_id") if name in value}
            kept = {name: inner for name, inner in value.items() if name not in dropped}
            if "chord" not in kept:
                # Celery writes the group into what is only its body, and half of it into what is no member yet.
                kept = {name: inner for name, inner in kept.items() if name not in ("group_id", "group_index")}
            return {name: anonymous(kept[name], names) for name in sorted(kept)}
        case list():
            return [anonymous(inner, names) for inner in value]
        case str() if len(value) == 36 and value.count("-") == 4:
            return names.setdefault(value, f"id-{len(names)}")
    return value


def test_chains_are_written_as_celery_writes_them(theirs: Any) -> None:
    canvas.chain(theirs.call("add", 1, 2), theirs.call("add", 3), theirs.call("add", 4), app=theirs).apply_async()
    like_celery(begun(chain(add.s(1, 2), add.s(3), add.s(4))), theirs.sent)
    theirs.sent.clear()
    both = canvas.group(theirs.call("add", 3), theirs.call("add", 4), app=theirs)
    canvas.chain(theirs.call("add", 1, 2), both, theirs.call("x"), app=theirs).apply_async()
    ours = chain(add.s(1, 2), group(add.s(3), add.s(4)), Signature("x"))
    like_celery(begun(ours), theirs.sent)


def test_chords_are_written_as_celery_writes_them(theirs: Any) -> None:
    canvas.chord([theirs.call("add", 1, 2), theirs.call("add", 3, 4)], theirs.call("x"), app=theirs).apply_async()
    follow = begun(chord([add.s(1, 2), add.s(3, 4)], Signature("x")))
    like_celery(follow, theirs.sent)
    assert [barrier.size for barrier in follow.barriers] == [2]
    theirs.sent.clear()
    first = canvas.chain(theirs.call("add", 1, 2), theirs.call("add", 5), app=theirs)
    canvas.chord([first, theirs.call("add", 3, 4)], theirs.call("x"), app=theirs).apply_async()
    like_celery(begun(chord([chain(add.s(1, 2), add.s(5)), add.s(3, 4)], Signature("x"))), theirs.sent)


def test_the_first_tasks_are_sent_and_the_rest_goes_with_them() -> None:
    follow = begun(add.s(1, 2) | add.s(3) | total.s())
    [publication] = follow.publish
    last, middle = embed(publication).chain or [Step(task=""), Step(task="")]
    assert (middle.task, middle.args, last.task, last.options["queue"]) == ("add", [3], "total", "sums")
    assert publication.queue == "queue-of-add"
    ids = list(task_ids(bodies(follow)))
    assert len(set(ids)) == len(ids) == 2


def test_what_is_said_of_a_whole_holds_for_its_parts() -> None:
    slow = total.s().set(queue="slow")
    follow = begun(chain(add.s(1, 2), slow).set(queue="fast", countdown=60.0, priority=7))
    [publication] = follow.publish
    assert (publication.queue, publication.delay, publication.message.priority) == ("fast", 60.0, 7)
    [then] = succeeded(publication.message, embed(publication), 3, route, 0.0).publish
    assert (then.queue, then.delay, then.message.priority) == ("slow", 0.0, 7)


def test_the_id_that_is_asked_for_is_that_of_the_end() -> None:
    flows: list[Canvas[Any]] = [
        chain(add.s(1, 2), add.s(3)),
        chord([add.s(1, 2)], total.s()),
        group(add.s(1, 2)),
        add.s(1, 2) | group(add.s(3)) | total.s() | add.s(4),
    ]
    for flow in flows:
        assert plan_of(settled(flow.set(task_id="mine").step())).result_id == "mine"


def test_members_are_counted_where_they_end() -> None:
    flow = chord([add.s(1, 2) | add.s(3), group(add.s(4, 5), add.s(6, 7)), chord([add.s(8, 9)], total.s())], total.s())
    follow = begun(flow)
    sizes = {barrier.size for barrier in follow.barriers}
    assert sizes == {4, 1}
    outer = next(barrier.chord for barrier in follow.barriers if barrier.size == 4)
    indexes = []
    for publication in follow.publish:
        headers, follows = publication.message.headers, embed(publication)
        if headers["group"] == outer:
            indexes.append(headers["group_index"])
        for step in (*(follows.chain or ()), *([follows.chord] if headers["group"] != outer and follows.chord else [])):
            indexes.append(step.options["group_index"])
            assert step.options["group_id"] == outer
    assert sorted(indexes) == [0, 1, 2, 3]


def test_what_follows_a_success() -> None:
    call = add.s(1, 2)
    call.link(total.s())
    call.link(add.s(9))
    [publication] = begun(call | total.s()).publish
    follow = succeeded(publication.message, embed(publication), 3, route, 0.0)
    assert [(p.message.headers["task"], body[0]) for p, body in zip(follow.publish, bodies(follow), strict=True)] == [
        ("total", [3]),
        ("add", [3, 9]),
        ("total", [3]),
    ]
    for published in follow.publish:
        assert published.message.headers["parent_id"] == publication.message.headers["id"]
        assert published.message.headers["root_id"] == publication.message.headers["id"]


def test_what_follows_a_failure() -> None:
    flow = chain(add.s(1, 2), add.s(3), chord([add.s(4), add.s(5)], total.s()), add.s(6)).on_error(Signature("told"))
    [publication] = begun(flow).publish
    task_id = publication.message.headers["id"]
    failure = {"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"}
    what = Failed(task_id, "add", "FAILURE", failure, "Traceback …")
    follow = failed(publication.message, embed(publication), what, route, 0.0)
    [errback] = follow.publish
    assert json.loads(errback.message.body)[0] == [task_id]
    assert errback.message.headers[FAILURE]["failure"] == failure
    assert [end.task for end in follow.ends] == ["add", "add", "add", "total", "add"]
    assert all(end.failure == failure for end in follow.ends)


def test_a_body_begins_with_the_results_or_fails_with_the_first_failure() -> None:
    flow = chord([add.s(1, 2), add.s(3, 4)], (total.s() | add.s(1)).on_error(Signature("told")))
    [first, _] = begun(flow).publish
    [member] = succeeded(first.message, embed(first), 3, route, 0.0).members
    assert (member.part.index, member.part.status, member.part.result) == (0, "SUCCESS", b"3")
    follow = gathered(member, [Part("c", 0, "a", "SUCCESS", b"3"), Part("c", 1, "b", "IGNORED", b"null")], route, 0.0)
    [body] = follow.publish
    assert json.loads(body.message.body)[0] == [[3, None]]
    assert body.message.headers["root_id"] == first.message.headers["root_id"]
    bad = Part("c", 1, "b", "FAILURE", b'{"exc_type": "ValueError", "exc_message": ["no", 1], "exc_module": "builtins"}')
    follow = gathered(member, [Part("c", 0, "a", "SUCCESS", b"3"), bad], route, 0.0)
    [told] = follow.publish
    assert told.message.headers["task"] == "told"
    assert [(end.task, end.failure["exc_type"]) for end in follow.ends] == [("total", "ChordError"), ("add", "ChordError")]
    assert follow.ends[0].failure["exc_message"] == ["Dependency b raised ValueError('no', 1)"]


def test_an_empty_header_needs_no_counting() -> None:
    follow = begun(chain(add.s(1, 2), chord([], total.s()), add.s(1)))
    [first] = follow.publish
    [body] = succeeded(first.message, embed(first), 3, route, 0.0).publish
    assert json.loads(body.message.body)[0] == [[]]
    assert [step.task for step in embed(body).chain or ()] == ["add"]
    assert begun(group(())) == Follow()


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": 5},
        {"task": "celery.chain", "kwargs": {"tasks": []}, "subtask_type": "chain"},
        {"task": "celery.chord", "kwargs": {"header": [], "body": None}, "subtask_type": "chord"},
        {"task": "celery.group", "kwargs": {"tasks": ["x"]}, "subtask_type": "group"},
        "add",
        None,
    ],
)
def test_what_is_no_step_is_refused(wrong: Any) -> None:
    with pytest.raises(MessageError):
        settled(step_of(wrong))


def test_wrong_workflows_are_refused_where_they_are_made() -> None:
    with pytest.raises(ConfigurationError, match="at least one step"):
        Chain([])
    with pytest.raises(ConfigurationError, match="a group has many ends"):
        group(add.s(1, 2)).link(total.s())
    with pytest.raises(ConfigurationError, match="task 'add': unknown option 'quue'; did you mean 'queue'"):
        add.s(1, 2).set(quue="x").step()  # type: ignore[call-arg]
    for flow in (chain(add.s(1), total.s()), chain(add.s(1, 2), add.s(1, 2)), chord([add.s(1)], total.s()), group(add.s())):
        with pytest.raises(TypeError, match=r"add\(\): "):
            flow.delay()
    with pytest.raises(TypeError, match=r"total\(\): too many"):
        chord([add.s(1, 2)], total.s(1)).delay()


STEPS: st.SearchStrategy[Step] = st.deferred(
    lambda: st.one_of(
        st.builds(Step, task=st.just("t")),
        st.builds(chain_of, st.lists(STEPS, min_size=1, max_size=3)),
        st.builds(group_of, st.lists(STEPS, max_size=3)),
        st.builds(chord_of, st.builds(group_of, st.lists(STEPS, max_size=3)), STEPS),
    )
)


class Run:
    """A workflow run by hand: each message is a task that returns 1, or fails where ``fails`` says so."""

    def __init__(self, fails: Callable[[int], bool]) -> None:
        self._fails = fails
        self.sizes: dict[str, int] = {}
        self.counted: dict[str, list[Part]] = {}
        self.ran: list[str] = []
        self.abandoned: list[str] = []

    def run(self, follow: Follow) -> None:
        waiting = [follow]
        while waiting:
            follow = waiting.pop()
            for barrier in follow.barriers:
                assert barrier.chord not in self.sizes
                self.sizes[barrier.chord] = barrier.size
            waiting += [self.end(publication) for publication in follow.publish]
            self.abandoned += [end.id for end in follow.ends]
            for member in follow.members:
                parts = self.counted.setdefault(member.part.chord, [])
                parts.append(member.part)
                if len(parts) == self.sizes.get(member.part.chord):
                    assert sorted(part.index or 0 for part in parts) == list(range(len(parts)))
                    waiting.append(gathered(member, parts, route, 0.0))

    def end(self, publication: Publication) -> Follow:
        message, task_id = publication.message, publication.message.headers["id"]
        self.ran.append(task_id)
        if self._fails(len(self.ran)):
            what = Failed(task_id, "t", "FAILURE", {"exc_type": "E", "exc_message": []})
            return failed(message, embed(publication), what, route, 0.0)
        return succeeded(message, embed(publication), 1, route, 0.0)


@given(STEPS)
def test_any_workflow_runs_to_its_end(step: Step) -> None:
    ordered = settled(step)
    assert settled(step_of(step_as_json(ordered))) == settled(ordered), "it stays in order on its way"
    run = Run(lambda _: False)
    run.run(launch(ordered, [], NOBODY, route, 0.0))
    assert sorted(run.ran) == sorted(str(task.id) for task in plan_of(ordered).tasks())
    assert {chord_id: len(parts) for chord_id, parts in run.counted.items()} == run.sizes
    assert root_of(ordered)


@given(STEPS, st.sets(st.integers(1, 12), min_size=1))
def test_any_workflow_comes_to_an_end_whatever_fails(step: Step, failing: set[int]) -> None:
    ordered = settled(step)
    run = Run(failing.__contains__)
    run.run(launch(ordered, [], NOBODY, route, 0.0))
    assert sorted(run.ran + run.abandoned) == sorted(str(task.id) for task in plan_of(ordered).tasks()), "each task has one end"
    assert all(len(run.counted[chord_id]) == size for chord_id, size in run.sizes.items())


def step_as_json(step: Step) -> Any:
    return json.loads(msgspec.json.encode(step))
