"""Schedules with real processes: what is sent after a downtime, what overlaps, what changes, and where they are refused."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from taskq.results.ledger import UNDECIDED, Change, tick_entry
from taskq.schedule import State, Tick, entry_key
from tests.chaos.schedules import APP, SECOND, begin_scheduler, ledger_of, nominal_times
from tests.servers import RabbitMQ
from tests.support import ROOT, Stage, Worker, eventually

KEY = entry_key("timetable", "seconds")


def state_of(stage: Stage) -> State:
    with ledger_of(stage) as ledger:
        return msgspec.json.decode(ledger.read([KEY])[KEY], type=State)


def rewrite(stage: Stage, **fields: Any) -> State:
    """Have the ledger say something else of the schedule, as if time had passed; no scheduler may run."""
    with ledger_of(stage) as ledger:
        written = ledger.read([KEY])[KEY]
        state = msgspec.structs.replace(msgspec.json.decode(written, type=State), **fields)
        assert ledger.swap([Change(KEY, written, msgspec.json.encode(state))])
        return state


def run_once(stage: Stage, number: int, **variables: str) -> Worker:
    """A scheduler from its start until it has sent a tick and resigned."""
    with begin_scheduler(stage, number, **variables) as scheduler:
        eventually(lambda: len(scheduler.logged("tick_sent")) >= 1, "a tick is sent")
        assert scheduler.stop() == 0
    return scheduler


def sent_by(scheduler: Worker) -> list[datetime]:
    return [datetime.fromisoformat(line["nominal"]) for line in scheduler.logged("tick_sent")]


def lateness(scheduler: Worker) -> list[float]:
    return [line["late"] for line in scheduler.logged("tick_sent")]


@pytest.mark.parametrize("misfire", ["skip", "latest", "all"])
def test_what_is_sent_after_a_downtime(sqlite_stage: Stage, misfire: str) -> None:
    stage = sqlite_stage
    assert max(lateness(run_once(stage, 1, MISFIRE=misfire))) < 1.0, "a new schedule begins now"
    last = state_of(stage).last
    rewrite(stage, last=last - 100 * SECOND)
    with begin_scheduler(stage, 2, MISFIRE=misfire) as scheduler:
        eventually(lambda: lateness(scheduler) and lateness(scheduler)[-1] < 1.0, "it has caught up")
        started = datetime.fromisoformat(scheduler.logged("scheduler_started")[0]["timestamp"])
    missed = [nominal for nominal in sent_by(scheduler) if nominal < started - 0.1 * SECOND]
    match misfire:
        case "skip":
            assert missed == []
        case "latest":
            # A scheduler that takes a second to begin finds a later one to be the latest.
            assert len(missed) <= 1
            assert sent_by(scheduler)[0] > started - 1.1 * SECOND
        case _:
            assert missed == [last + (n - 99) * SECOND for n in range(len(missed))]
            assert len(missed) >= 100


def test_a_tick_is_a_message_that_says_which_it_is(stage: Stage) -> None:
    scheduler = run_once(stage, 1)
    [message, *_] = stage.drain(1)
    nominal = sent_by(scheduler)[0]
    tick = Tick("timetable", "seconds", nominal)
    assert message.headers["tq-tick"] == tick.key
    assert message.headers["id"] == tick.task_id
    assert ("tq-tick-copy" in message.headers) == stage.broker.startswith("amqp")
    assert state_of(stage).sent is not None


def test_a_tick_whose_sender_died_is_sent_again_and_one_copy_runs(amqp_stage: Stage) -> None:
    """The sender had claimed the tick; whether it was published too, nobody can know."""
    stage = amqp_stage
    run_once(stage, 1)
    stage.drain(1)
    state = state_of(stage)
    pending = state.last + SECOND
    tick = Tick("timetable", "seconds", pending)
    rewrite(stage, last=pending, pending=pending, copies=1)
    with ledger_of(stage) as ledger:
        assert ledger.swap([Change(tick_entry(tick.key), None, UNDECIDED)])
    scheduler = run_once(stage, 2)
    assert sent_by(scheduler)[0] == pending
    messages = stage.drain(1)
    copy = next(message for message in messages if message.headers["id"] == tick.task_id)
    published_before = copy.with_headers(tq_tick_copy="the first copy")
    stage.publish(copy, published_before, copy)
    with stage.worker(APP, "--no-scheduler") as worker:
        eventually(lambda: len(worker.logged("tick_copy_dropped")) >= 1, "a copy is dropped")
        ran = stage.traced("tick", id=tick.task_id)
        assert len({trace["copy"] for trace in ran}) == 1, "the same copy may come twice, another one may not"


def test_nothing_is_sent_while_the_last_task_has_not_ended(stage: Stage) -> None:
    with stage.worker(APP, OVERLAP="skip", GATE="gate") as worker:
        stage.traced("tick")
        eventually(lambda: len(worker.logged("tick_skipped", reason="overlap")) >= 2, "ticks are skipped")
        assert len(stage.traces("tick")) == 1
        stage.open_gate("gate")
        assert len(stage.traced("tick", 3)) >= 3
        assert worker.stop() == 0


def test_a_schedule_that_the_broker_refuses_holds_up_no_other_one(amqp_stage: Stage) -> None:
    """A quorum queue knows no priorities."""
    with amqp_stage.worker(APP, "--no-scheduler"), begin_scheduler(amqp_stage, 1, PRIORITY="5") as scheduler:
        [refused] = eventually(lambda: scheduler.logged("tick_refused"), "a tick is refused")
        assert refused["schedule"] == "urgent"
        assert "priority" in refused["error"]
        begun = len(nominal_times(amqp_stage))
        eventually(lambda: len(nominal_times(amqp_stage)) >= begun + 2, "the other schedule goes on")
        assert scheduler.logged("tick_sent", schedule="urgent") == []
        assert len(scheduler.logged("tick_refused")) == 1
        assert scheduler.logged("scheduler_failing") == []


def test_a_changed_schedule_begins_anew(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    run_once(stage, 1, MISFIRE="all")
    rewrite(stage, last=datetime.now(UTC) - timedelta(hours=1))
    scheduler = run_once(stage, 2, MISFIRE="all", EVERY="1.5")
    assert scheduler.logged("schedule_begins", schedule="seconds", changed=True)
    assert max(lateness(scheduler)) < 1.0


def test_a_clock_that_was_set_back_sends_nothing_twice(sqlite_stage: Stage) -> None:
    """As seen from the ledger: ticks up to a moment in the future have been sent."""
    stage = sqlite_stage
    run_once(stage, 1)
    ahead = rewrite(stage, last=state_of(stage).last + 4 * SECOND).last
    scheduler = run_once(stage, 2, MISFIRE="all")
    assert min(sent_by(scheduler)) == ahead + SECOND


def test_a_broker_that_was_away_costs_no_tick(killable_rabbitmq: RabbitMQ, queue: str, tmp_path: Any) -> None:
    node = killable_rabbitmq
    stage = Stage(node.url, queue, tmp_path)
    with stage.worker(APP, "--no-scheduler"), begin_scheduler(stage, 1) as scheduler:
        stage.traced("tick")
        node.sync()
        node.kill()
        eventually(lambda: scheduler.logged("scheduler_failing"), "the scheduler notices")
        node.start()
        eventually(lambda: scheduler.logged("scheduler_recovered"), "the scheduler goes on")
        back = datetime.now(UTC)
        eventually(lambda: max(nominal_times(stage)) > back + SECOND, "ticks are run")
        assert len(scheduler.logged("scheduler_failing")) == 1
    ran = nominal_times(stage)
    assert set(ran.values()) == {1}
    stage.close()


def test_a_worker_that_is_told_so_leaves_schedules_to_others(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    with stage.worker(APP, "--no-scheduler") as idle, stage.worker(APP) as worker:
        stage.traced("tick", 2)
        assert worker.logged("scheduler_leads")
        assert idle.logged("scheduler_started") == []
        assert worker.stop() == idle.started().stop() == 0


def test_after_its_leader_stops_another_worker_leads_at_once(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    with stage.worker(APP) as first, stage.worker(APP) as second:
        eventually(lambda: first.logged("scheduler_leads") or second.logged("scheduler_leads"), "one leads")
        leader, other = (first, second) if first.logged("scheduler_leads") else (second, first)
        other.started()
        assert leader.stop() == 0
        stage.until(lambda: other.logged("scheduler_leads"), "the other one leads", 3.0)
        assert other.stop() == 0


def test_schedules_without_a_backend_are_refused(amqp_stage: Stage) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "taskq", "worker", "-A", APP, "--backend", "off"],
        cwd=ROOT,
        env=amqp_stage.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 1
    assert "schedules (seconds, nightly) need a result backend" in refused.stderr
    with amqp_stage.worker(APP, "--backend", "off", "--no-scheduler") as worker:
        assert worker.started().stop() == 0
    without = taskq(amqp_stage, "scheduler", "-A", "tests.apps.basic:app")
    assert (without.returncode, "has no schedules" in without.stderr) == (1, True)


def taskq(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "taskq", *arguments]
    return subprocess.run(command, cwd=ROOT, env=stage.environment(), capture_output=True, text=True, timeout=60, check=False)


def test_the_command_line_shows_schedules_and_sends_one(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    run_once(stage, 1)
    rows = {row["name"]: row for row in json.loads(taskq(stage, "schedule", "list", "-A", APP, "--json").stdout)}
    assert rows["seconds"]["entry"] == "every 0:00:01"
    assert datetime.fromisoformat(rows["seconds"]["last"]) == state_of(stage).sent
    nightly = rows["nightly"]
    assert (nightly["entry"], nightly["timezone"], nightly["last"], nightly["jitter"]) == (
        "30 2 * * *",
        "Europe/Berlin",
        None,
        60,
    )
    assert "30 2 * * *" in taskq(stage, "schedule", "list", "-A", APP).stdout
    ticks = json.loads(taskq(stage, "schedule", "next", "nightly", "--count", "3", "-A", APP, "--json").stdout)
    assert [tick["local"][11:16] for tick in ticks] == ["02:30"] * 3
    before, waiting = state_of(stage), stage.depth()
    task_id = taskq(stage, "schedule", "run", "nightly", "-A", APP).stdout.strip()
    assert waiting is not None
    assert stage.depth() == waiting + 1
    [*_, message] = stage.drain(waiting + 1)
    assert message.headers["id"] == task_id
    assert "tq-tick" not in message.headers
    assert state_of(stage) == before
    unknown = taskq(stage, "schedule", "run", "nighty", "-A", APP)
    assert (unknown.returncode, "did you mean 'nightly'?" in unknown.stderr) == (2, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_scheduler_ends_when_it_is_told_to(sqlite_stage: Stage, number: int) -> None:
    with begin_scheduler(sqlite_stage, 1) as scheduler:
        eventually(lambda: scheduler.logged("scheduler_leads"), "it leads")
        assert scheduler.stop(number) == 0


def test_the_page_on_schedules_runs_as_written(sqlite_stage: Stage) -> None:
    page = (ROOT / "docs" / "schedules.md").read_text()
    source, shell = re.findall(r"^```(?:python|console)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (sqlite_stage.folder / "shop.py").write_text(source)
    environment = sqlite_stage.environment(PYTHONPATH=str(ROOT))
    outputs = []
    for line in shell.splitlines():
        command = shlex.split(line.removeprefix("$ "), comments=True)[1:]
        done = subprocess.run(
            [sys.executable, "-m", "taskq", *command],
            cwd=sqlite_stage.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    listed, ticks, sent = outputs
    assert "*/10 8-17 * * mon-fri" in listed
    assert len(ticks.splitlines()) == 11
    assert sqlite_stage.client().result(sent.strip()).status == "PENDING"
