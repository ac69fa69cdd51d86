"""A shop that is deployed again and again while customers go on buying: its source, its customers, and the bill."""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support import Stage, Worker

_SOURCE = """
import time

from taskq import Attempt, TaskQ
from tests.apps.traces import pass_gate, trace

VERSION = {version}
app = TaskQ("shop"{settings})


@app.task(name="buy", bind=True)
def buy(attempt: Attempt, key: str, seconds: float = 0.0) -> int:
    trace("began", key=key, version=VERSION, redelivered=attempt.redelivered, crashes=attempt.crashes)
    time.sleep(seconds)
    trace("ended", key=key)
    return VERSION


@app.task(name="hold")
def hold(key: str, gate: str) -> int:
    trace("hold", key=key, version=VERSION)
    pass_gate(gate)
    trace("released", key=key)
    return VERSION
"""


class Shop:
    """The source of an application in a folder of its own."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.folder = stage.folder / "source"
        self.folder.mkdir()
        self.file = self.folder / "shop.py"

    def write(self, version: int, settings: str = "", *, more: str = "", less: str = "") -> None:
        """Save this version, in one go; ``more`` is appended, and the function ``less`` is no task any more."""
        text = _SOURCE.format(version=version, settings=settings and f", {settings}") + more
        self.save(text.replace(f'@app.task(name="{less}")', "") if less else text)

    def save(self, text: str) -> None:
        """Save this text, in one go."""
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.rename(self.file)

    def worker(self, *options: str, **variables: str) -> Worker:
        """A worker of the shop, which keeps nothing compiled: versions of one second and size would be the same to Python."""
        found = {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", **variables}
        return self.stage.worker("shop", *options, **found)


class Customers:
    """Threads that send tasks, one confirmed call after the other, until the block ends. One of twenty takes a while."""

    def __init__(self, stage: Stage, count: int = 2, longest: float = 0.5) -> None:
        self.sent: list[str] = []
        self.errors: list[Exception] = []
        self._client = stage.client()
        self._longest = longest
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._buy, args=(f"customer {number}",)) for number in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.leave()

    def leave(self) -> None:
        """Send nothing more."""
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def _buy(self, name: str) -> None:
        chance, number = random.Random(name), 0
        while not self._enough.wait(0.02):
            number += 1
            key = f"{name}, order {number}"
            seconds = chance.uniform(0.1, self._longest) if chance.random() < 0.05 else 0.0
            try:
                self._client.send_task("buy", [key, seconds])
            except Exception as failed:
                self.errors.append(failed)
                raise
            self.sent.append(key)


def settled_bill(stage: Stage, customers: Customers) -> None:
    """Once nothing is left to do: each order was begun once and ended once, and none of them came back to a worker."""
    assert customers.errors == []
    sent = Counter(customers.sent)
    stage.until(lambda: len(stage.traces("ended")) >= len(sent), f"{len(sent)} orders have ended", 30.0)
    for event in ("began", "ended"):
        found = Counter(trace["key"] for trace in stage.traces(event))
        wrong = {key: (sent[key], found[key], stage.traces(key=key)) for key in sent | found if sent[key] != found[key]}
        assert not wrong, f"sent and {event} so many times: {wrong}"
    blamed = [trace for trace in stage.traces("began") if trace["crashes"]]
    assert blamed == []
    assert stage.depth() == 0


def children_of(process: int) -> list[int]:
    """The living children of a process."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
