"""An application whose tasks raise and return what nobody can describe, encode or keep."""

from __future__ import annotations

import os
from typing import Any
from urllib.error import HTTPError

from taskq import Attempt, Reject, Retry, TaskQ
from tests.apps.traces import trace

app = TaskQ("faulty")


class Bad(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Model:
    """What an object-relational mapper calls a model."""

    class DoesNotExist(Exception):
        """There is none."""


class BrokenText:
    def __repr__(self) -> str:
        raise SystemExit(3)


def nested(depth: int) -> Exception:
    error: Exception = ValueError("deep")
    for _ in range(depth):
        error = ExceptionGroup("group", [error])
    return error


ERRORS: dict[str, Any] = {
    "bad": Bad,
    "argument": lambda: ValueError(BrokenText()),
    "surrogate": lambda: ValueError("bad file " + os.fsdecode(b"caf\xe9")),
    "reject": lambda: Reject(ValueError("bad file " + os.fsdecode(b"caf\xe9"))),
    "busy": lambda: Retry("busy"),
    "nested": lambda: nested(500),
    "long": lambda: ValueError("y" * 10_000_000),
    "missing": lambda: Model.DoesNotExist("no order 5"),
    "file": lambda: FileNotFoundError(2, "No such file", "/etc/nothing"),
    "http": lambda: HTTPError("http://shop", 404, "gone", None, None),  # type: ignore[arg-type]
}


@app.task(name="raises", max_retries=0)
def raises(kind: str) -> None:
    trace("raises", kind=kind)
    make = ERRORS[kind]
    raise make()


@app.task(name="chinese", bind=True, max_retries=25)
def chinese(attempt: Attempt) -> None:
    raise attempt.retry(exc=ValueError("错误:连接被拒绝" * 400), countdown=0)


@app.task(name="unwanted", ignore_result=True, autoretry_for=(Exception,), max_retries=3, default_retry_delay=0)
def unwanted() -> Any:
    trace("unwanted")
    return object()


@app.task(name="odd", autoretry_for=(Exception,), max_retries=3, default_retry_delay=0)
def odd() -> Any:
    trace("odd")
    return object()


@app.task(name="large", autoretry_for=(Exception,), max_retries=3, default_retry_delay=0)
def large(size: int) -> str:
    trace("large")
    return "x" * size


@app.task(name="note")
def note(*args: Any) -> None:
    trace("note", args=[str(arg)[:100] for arg in args])


@app.task(name="add")
def add(x: int, y: int) -> int:
    return x + y
