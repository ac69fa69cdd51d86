"""Kinds 1 and 9: whatever is said to a worker by remote control, it is answered or ignored, and the next command is heard."""

from __future__ import annotations

import json
import re
import select
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskq.broker import open_caller, open_line
from taskq.broker.pidbox import COMMANDS, KINDS, LONGEST_ANSWER, REPLIES, Caller, Clock, Command, Mailbox, read_command
from taskq.errors import MessageError, UnsupportedFeature
from taskq.message import Message
from tests.support import PATIENCE, Stage, Worker, eventually

SURROGATE = '"\\ud800"'
DEEP = "[" * 5_000 + "]" * 5_000
REPLY = {"exchange": REPLIES, "routing_key": "nobody"}


def command(method: Any = "ping", **fields: Any) -> bytes:
    return json.dumps({"method": method, **fields}).encode()


HOSTILE: dict[str, bytes] = {
    "no JSON": b"\xff\xfe{",
    "invalid UTF-8": b'{"method": "caf\xe9"}',
    "nothing": b"",
    "a list": b"[]",
    "a number": b"5",
    "nested without end": DEEP.encode(),
    "arguments nested without end": b'{"method": "ping", "arguments": {"x": %s}}' % DEEP.encode(),
    "marked types nested without end": b'{"method": "ping", "arguments": {"__type__": %s}}' % DEEP.encode(),
    "a number as method": command(5),
    "no method": command(None),
    "an endless method": command("x" * 100_000, reply_to=REPLY, ticket="t"),
    "a surrogate as method": b'{"method": %s, "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "x"}}'
    % SURROGATE.encode(),
    "a surrogate as ticket": b'{"method": "ping", "ticket": %s, "reply_to": {"exchange": "reply.celery.pidbox",'
    b' "routing_key": "x"}}' % SURROGATE.encode(),
    "a surrogate in arguments": b'{"method": "rate_limit", "arguments": {"app": %s}}' % SURROGATE.encode(),
    "arguments that are a list": command(arguments=[1]),
    "a destination that is a number": command(destination=5),
    "a destination of numbers": command(destination=[5]),
    "an endless destination": command(destination=["x"] * 100_000),
    "a pattern that is a list": command(pattern=["x"], matcher="glob"),
    "an endless glob": command(pattern="*a" * 10_000, matcher="glob", reply_to=REPLY),
    "answers to a number": command(reply_to=5),
    "answers to another kind of exchange": command(reply_to={"exchange": "celeryev", "routing_key": "x"}, ticket="t"),
    "answers to an exchange of the broker's": command(reply_to={"exchange": "amq.made.up", "routing_key": "x"}, ticket="t"),
    "answers to an endless name": command(reply_to={"exchange": REPLIES, "routing_key": "x" * 1_000}, ticket="t"),
    "an endless ticket": command(reply_to=REPLY, ticket="t" * 200_000),
    "a ticket that is a number": command(reply_to=REPLY, ticket=5),
}
HEADERS: dict[str, Mapping[str, Any]] = {
    "a clock beyond all clocks": {"clock": 2**63 - 1},
    "a clock that is a text": {"clock": "late"},
    "an expiry that is a text": {"expires": "never"},
    "an expiry that is no number": {"expires": [1]},
}
ODD: list[tuple[str, dict[str, Any]]] = [
    ("rate_limit", {"task_name": 5, "rate_limit": {}}),
    ("time_limit", {"task_name": [], "hard": "x"}),
    ("pool_grow", {"n": "x"}),
    ("pool_grow", {"n": 10**9}),
    ("pool_grow", {"n": True}),
    ("pool_shrink", {"n": 10**9}),
    ("pool_shrink", {"n": 2.5}),
    ("scale", {"n": 1e300}),
    ("scale", {}),
    ("revoke", {}),
    ("revoke", {"task_id": {}}),
    ("revoke", {"task_id": [[]]}),
    ("revoke", {"task_id": ["x" * 100_000]}),
    ("revoke", {"task_id": [""] * 3}),
    ("revoke", {"task_id": ["x"] * 100_000}),
    ("revoke", {"task_id": "x", "terminate": True, "signal": []}),
    ("terminate", {"task_id": "x", "signal": {"a": 1}}),
    ("terminate", {"task_id": "x", "signal": 10**9}),
    ("query_task", {"ids": {"a": 1}}),
    ("query_task", {"ids": [None]}),
    ("registered", {"taskinfoitems": 5}),
    ("registered", {"taskinfoitems": [5]}),
    ("made_up", {"x": 1}),
    ("__class__", {}),
]
ASKED = ("ping", "stats", "status", "active", "reserved", "scheduled", "registered", "revoked", "active_queues", "query_task")
ORDERED = ("revoke", "terminate", "pool_grow", "pool_shrink", "scale", "rate_limit", "time_limit", "add_consumer", "hello")


@contextmanager
def served(stage: Stage) -> Iterator[tuple[Worker, str, Caller]]:
    """A worker that hears commands and, whatever it hears, goes on without a new connection."""
    with stage.worker("tests.apps.basic:app", "-c", "1") as worker:
        node = stage.name_of(worker)
        with open_caller(stage.effective()) as caller:
            yield worker, node, caller
            assert caller.ask("ping", nodes=[node], timeout=10.0) == {node: {"ok": "pong"}}
        for event in ("remote_control_failed", "remote_control_lost", "remote_control_restored", "command_failed"):
            assert worker.logged(event) == []
        assert worker.stop() == 0


def say(stage: Stage, *bodies: bytes, **headers: Any) -> None:
    """Publish these bytes to whoever hears commands."""
    with closing(open_line(stage.effective(), "test", 5.0)) as line:
        for body in bodies:
            line.publish(COMMANDS, KINDS[COMMANDS], "", body, headers)
        line.turn()


def test_what_is_no_command_is_ignored(stage: Stage) -> None:
    with served(stage) as (_, node, caller):
        for what, body in HOSTILE.items():
            say(stage, body)
            assert caller.ask("ping", nodes=[node], timeout=10.0) == {node: {"ok": "pong"}}, what
        for what, headers in HEADERS.items():
            say(stage, command(destination=["nobody"]), **headers)
            assert caller.ask("ping", nodes=[node], timeout=10.0) == {node: {"ok": "pong"}}, what


def test_odd_arguments_are_answered_with_an_error(stage: Stage) -> None:
    with served(stage) as (worker, node, caller):
        for method, arguments in ODD:
            answer = caller.ask(method, arguments, nodes=[node], timeout=10.0)
            assert "error" in answer[node], (method, arguments)
        [child] = caller.ask("status", nodes=[node], timeout=10.0)[node]["children"]
        assert child["slot"] == 0
        assert worker.logged("scaled") == []


def test_a_regular_expression_is_refused_and_freezes_nobody(stage: Stage) -> None:
    with served(stage) as (worker, node, caller):
        catastrophic = command(pattern=r"(\w+\s?@?)*$!", matcher="pcre")
        begun = time.monotonic()
        say(stage, catastrophic, catastrophic)
        assert caller.ask("ping", nodes=[node], timeout=10.0) == {node: {"ok": "pong"}}
        assert time.monotonic() - begun < 5.0
        eventually(lambda: len(worker.logged("command_refused")) == 2, "it is said")
        assert "no pcre pattern" in worker.logged("command_refused")[0]["error"]
        assert caller.ask("ping", pattern="taskq@*", timeout=2.0) == {node: {"ok": "pong"}}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 2**31, 2**63, 2**70, 1e308, float("nan")])
    | st.text(alphabet=st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = ("task_id", "ids", "n", "signal", "terminate", "taskinfoitems", "with_defaults", "from_node", "app", "x")
commands = st.fixed_dictionaries(
    {"method": st.sampled_from((*ASKED, *ORDERED)) | json_values},
    optional={
        "arguments": st.dictionaries(st.sampled_from(NAMES), json_values, max_size=4) | json_values,
        "destination": json_values,
        "pattern": json_values,
        "matcher": st.sampled_from(["glob", "pcre"]) | json_values,
        "ticket": json_values,
        "reply_to": st.just(REPLY) | st.fixed_dictionaries({"exchange": json_values, "routing_key": json_values}) | json_values,
    },
)
bodies = st.binary(max_size=60) | commands.map(lambda said: json.dumps(said).encode())


def test_whatever_is_said_the_next_command_is_heard(stage: Stage) -> None:
    with served(stage) as (_, node, caller):

        @settings(max_examples=10, suppress_health_check=list(HealthCheck))
        @given(st.lists(bodies, min_size=10, max_size=40))
        def heard(said: list[bytes]) -> None:
            say(stage, *said)
            assert caller.ask("ping", nodes=[node], timeout=10.0) == {node: {"ok": "pong"}}

        heard()


@settings(max_examples=300)
@given(bodies)
def test_a_message_is_a_command_or_none(body: bytes) -> None:
    try:
        said = read_command(Message(headers={}, body=body))
    except MessageError:
        return
    assert isinstance(said, Command)
    try:
        assert said.means("taskq@host-1-ab") in (True, False)
    except UnsupportedFeature:
        assert said.pattern


def test_an_answer_that_cannot_be_written_is_an_error(sqlite_stage: Stage) -> None:
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    answers = ["\ud800", deep, "x" * LONGEST_ANSWER]

    def serve() -> None:
        line = open_line(sqlite_stage.effective(), "test", 5.0)
        with closing(Mailbox(line, "taskq@here", Clock())) as mailbox:
            listening.set()
            deadline = time.monotonic() + PATIENCE
            while answers and time.monotonic() < deadline:
                commands, wait = mailbox.turn()
                for said in commands:
                    mailbox.answer(said, answers.pop(0))
                select.select([mailbox.fileno()], [], [], min(wait, 1.0))

    listening = threading.Event()
    with ThreadPoolExecutor(1) as threads, open_caller(sqlite_stage.effective()) as caller:
        served = threads.submit(serve)
        assert listening.wait(PATIENCE)
        for _ in range(len(answers)):
            assert "error" in caller.ask("ping", nodes=["taskq@here"], timeout=5.0)["taskq@here"]
        served.result(PATIENCE)


def test_what_tasks_say_of_themselves_can_be_asked(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker("tests.apps.trouble:app", "-c", "1") as worker:
        node = sqlite_stage.name_of(worker)
        with open_caller(sqlite_stage.effective()) as caller:
            plain = caller.ask("registered", nodes=[node], timeout=10.0)[node]
            fields = ["max_retries", "rate_limit", "acks_late"]
            told = caller.ask("registered", {"taskinfoitems": fields}, nodes=[node], timeout=10.0)[node]
    assert [text.partition(" ")[0] for text in told] == plain
    assert all(re.fullmatch(r"\S+ \[max_retries=\w+ acks_late=(True|False)\]", text) for text in told)
