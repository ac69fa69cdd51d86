"""Messages that nobody should have sent, and outcomes that no child should report: whatever a broker or a pipe can carry.

Made by a ``random.Random``, so that hypothesis (``st.randoms()``), a seed of a fuzz and a single example make the same ones.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from taskq.compose import Family
from taskq.launch import Member
from taskq.message import Message, Publication
from taskq.results.store import Barrier, Part, Record
from taskq.step import Step
from taskq.workers.outcome import Flow, Outcome

TASKS = ("add", "fail", "once", "refuse", "unknown")
HEADERS = (
    *("id", "task", "root_id", "parent_id", "group", "group_index", "retries", "eta", "expires", "timelimit", "ignore_result"),
    *("tq-crashes", "tq-deliveries", "tq-attempts", "tq-history", "tq-sent", "tq-alone", "tq-returns", "tq-suspected"),
    *("tq-tick", "tq-tick-copy", "tq-unknown-since", "tq-failure", "compression", "lang", "origin"),
)
PROPERTIES = ("correlation_id", "reply_to", "priority", "delivery_mode", "delivery_info", "delay")
OPTIONS = (
    *("queue", "priority", "countdown", "eta", "expires", "task_id", "headers", "time_limit", "ignore_result"),
    *("link", "link_error", "chord", "group_id", "group_index", "chain", "reply_to"),
)
EVENTS = (
    *("succeeded", "failed", "retried", "rejected", "ignored", "revoked", "delayed", "dead-lettered", "crashed", "given back"),
    *("begun", "asked", "dropped", "gathered"),
)
TEXTS = (
    *("", "x", "\ud800", "caf\udce9", "\0", "i" * 300, "x.returned", "amq.x", "a.*.b", "9999-12-31T00:00:00Z", "2020-01-01"),
    *("application/x-python-serialize", "utf-16", "gzip", "STARTED"),
)
NUMBERS = (0, 1, -1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**400, 1.8e12, 1e308, float("nan"), float("inf"), 0.5)
SHAPES: tuple[Any, ...] = (
    [],
    {},
    [[]],
    [[[[1]]]],
    {"a": {"b": []}},
    {"__type__": "datetime", "__value__": 5},
    ["x"] * 50,
    [None],
)


def odd(rng: Random) -> Any:
    """A value of any kind, most often of the wrong one."""
    match rng.randrange(7):
        case 0:
            return None
        case 1:
            return rng.random() < 0.5
        case 2 | 3:
            return rng.choice(NUMBERS)
        case 4 | 5:
            return rng.choice(TEXTS)
    return rng.choice(SHAPES)


def some(rng: Random, names: tuple[str, ...], most: int) -> dict[str, Any]:
    """Odd values under some of these names."""
    return {rng.choice(names): odd(rng) for _ in range(rng.randint(0, most))}


def step(rng: Random, depth: int = 0) -> Any:
    """A step of a workflow as it travels, of which some things are odd."""
    options = {"task_id": f"step-{rng.randrange(10**9)}", **some(rng, OPTIONS, 3)}
    plain: dict[str, Any] = {"task": rng.choice(TASKS), "args": [1], "kwargs": {}, "options": options, "subtask_type": None}
    plain["immutable"] = rng.random() < 0.5
    if depth < 2 and rng.random() < 0.3:
        inner = [step(rng, depth + 1) for _ in range(rng.randint(0, 3))]
        kind = rng.choice(("chain", "group", "chord"))
        plain |= {"task": f"celery.{kind}", "subtask_type": kind, "kwargs": {"tasks": inner}}
        if kind == "chord":
            plain["kwargs"] = {"kwargs": {}, "header": inner, "body": step(rng, depth + 1)}
    if rng.random() < 0.2:
        plain[rng.choice(list(plain))] = odd(rng)
    return plain if rng.random() < 0.95 else odd(rng)


def body(rng: Random) -> bytes:
    """``[args, kwargs, embed]``, or something like it, or nothing like it."""
    embed: dict[str, Any] = {}
    for name in ("callbacks", "errbacks", "chain"):
        if rng.random() < 0.3:
            embed[name] = [step(rng) for _ in range(rng.randint(0, 2))] if rng.random() < 0.8 else odd(rng)
    if rng.random() < 0.2:
        embed["chord"] = step(rng)
    match rng.randrange(12):
        case 0:
            return rng.randbytes(rng.randint(0, 30))
        case 1:
            return json.dumps(rng.choice([[[], {}], {}, None, [[1], 5, embed], [{}, [], embed], [1, 2, 3]])).encode()
        case 2:
            return b"[" * rng.choice((10, 6000)) + b"]" * 5
        case 3:
            return json.dumps([[1], {}, embed]).encode().replace(b"1", b"\xe9", 1)
    return json.dumps([[1], {}, embed]).encode()


def headers(rng: Random) -> dict[str, Any]:
    """Headers as Celery or taskq write them, of which some are odd."""
    plain = {"lang": "py", "task": rng.choice(TASKS), "id": f"hostile-{rng.randrange(10**15)}", "retries": 0}
    return {**plain, **some(rng, HEADERS if rng.random() < 0.1 else HEADERS[2:], 3)}


def properties(headers: dict[str, Any]) -> bytes:
    """The properties of a row of the SQLite broker, of which only the headers are odd."""
    plain = {"content-type": "application/json", "content-encoding": "utf-8", "headers": headers, "properties": {}}
    return json.dumps(plain).encode()


def envelope(rng: Random) -> tuple[bytes, bytes]:
    """A message as it stands in a row of the SQLite broker: its properties and its body."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randint(0, 40)), body(rng)
    written: dict[str, Any] = {"content-type": "application/json", "content-encoding": "utf-8", "headers": headers(rng)}
    written["properties"] = {"correlation_id": written["headers"]["id"], **some(rng, PROPERTIES, 2)}
    if rng.random() < 0.2:
        written[rng.choice(list(written))] = odd(rng)
    text = json.dumps(written).encode()
    if rng.random() < 0.05:
        text = text.replace(b'"py"', b'"\xe9"') if rng.random() < 0.5 else text.replace(b'"py"', b"[" * 6000 + b"]" * 6000)
    return text, body(rng)


def message(rng: Random) -> Message:
    """A message as a value."""
    return Message(
        headers=headers(rng) if rng.random() < 0.8 else some(rng, HEADERS, 3),
        body=body(rng),
        content_type=rng.choice((None, "application/json", *TEXTS)),
        content_encoding=rng.choice((None, "utf-8", *TEXTS)),
        priority=rng.choice((None, 0, 9, 10, -1, 2**70)),
        correlation_id=rng.choice((None, "id", *TEXTS)),
        reply_to=rng.choice((None, None, *TEXTS)),
    )


def publication(rng: Random) -> Publication:
    """A message on its way somewhere."""
    queue = rng.choice(("other", "other", *TEXTS))
    return Publication(queue, message(rng), rng.choice((0.0, 0.0, *map(float, NUMBERS[:4]), -1.0, 1e12)), rng.random() < 0.3)


def record(rng: Random) -> Record:
    """What a store is asked to keep."""
    attempt = rng.choice((0, 1, -1, 2**31, 2**63, 2**70))
    meta = rng.choice((b"", b"{}", b'{"result": "\xe9"}', b"[" * 6000, rng.randbytes(10)))
    return Record(rng.choice(("r", *TEXTS)), "SUCCESS", meta, attempt, rng.random() < 0.2, rng.choice((None, None, *TEXTS)))


def outcome(rng: Random) -> Outcome:
    """An outcome that the pipe can carry."""
    flow = None
    if rng.random() < 0.5:
        texts = ("c", *TEXTS)
        index, result = rng.choice((None, 0, -1, 2**70)), rng.choice((b"1", b"\xe9", b""))
        part = Part(rng.choice(texts), index, rng.choice(texts), "SUCCESS", result)
        options = some(rng, OPTIONS, 3)
        flow = Flow(
            (Barrier(rng.choice(texts), rng.choice((0, 1, -1, 2**70))),) if rng.random() < 0.5 else (),
            (record(rng),) if rng.random() < 0.5 else (),
            (Member(part, Step(task="add", options=options), Family()),) if rng.random() < 0.7 else (),
        )
    event: Any = rng.choice(EVENTS)
    publish = tuple(publication(rng) for _ in range(rng.randint(0, 2)))
    return Outcome(event, publish, record(rng) if rng.random() < 0.5 else None, flow)
