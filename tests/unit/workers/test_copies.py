"""A copy of a schedule's tick runs only if it is the one that may."""

from __future__ import annotations

from taskq import TaskQ, config
from taskq.broker import decoder
from taskq.broker.interface import Delivery
from taskq.broker.sqlite.properties import encode
from taskq.workers.execute import Executor
from taskq.workers.surroundings import Alone

app = TaskQ("shop")
ran: list[str] = []


@app.task(name="tick")
def tick() -> None:
    ran.append("tick")


class Judge(Alone):
    """Surroundings that know which copy may run."""

    def __init__(self, *, may: bool) -> None:
        self.may = may
        self.asked = 0

    def is_the_one(self) -> bool:
        self.asked += 1
        return self.may


def delivery(**headers: str) -> Delivery:
    properties = encode(
        {
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"id": "id-1", "task": "tick", **{name.replace("_", "-"): value for name, value in headers.items()}},
            "properties": {},
        }
    )
    return Delivery("mail", 1, properties, b"[[], {}, {}]", False)


def run(judge: Judge, delivery: Delivery) -> str:
    settings = config.load({"broker": "sqlite:////nowhere/unit.db"}, environment={})
    execute = Executor(app.tasks, settings, decoder(settings), "1@host")
    execute.surroundings = judge
    ran.clear()
    outcome = execute(delivery)
    assert outcome is not None
    return outcome.event


def test_the_one_runs() -> None:
    assert run(judge := Judge(may=True), delivery(tq_tick="t", tq_tick_copy="a")) == "succeeded"
    assert (ran, judge.asked) == (["tick"], 1)


def test_another_one_is_dropped_and_leaves_no_record() -> None:
    assert run(judge := Judge(may=False), delivery(tq_tick="t", tq_tick_copy="b")) == "dropped"
    assert (ran, judge.asked) == ([], 1)


def test_nobody_is_asked_where_there_can_be_no_copies() -> None:
    assert run(judge := Judge(may=False), delivery(tq_tick="t")) == "succeeded"
    assert (ran, judge.asked) == (["tick"], 0)
