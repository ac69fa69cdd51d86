"""The app: the composition root. It knows the tasks, the settings, the broker and the backend, and puts them together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack, overload

import msgspec

from taskq import checks, config, graveyard, log, plan, sending
from taskq.attempt import Attempt, current_attempt
from taskq.broker import open_replies, open_session
from taskq.broker.interface import Check, Replies, TakeReply
from taskq.broker.publisher import Publisher
from taskq.compose import Family, compose
from taskq.config import masked
from taskq.control import Pause, Resume, Revoke, Standing
from taskq.cron import Crontab
from taskq.dead import DeadLetter, Filter, Selection
from taskq.errors import BrokerError, ConfigurationError, MessageError, ResultError, ResultsDisabled, UnsupportedFeature
from taskq.function import same, where
from taskq.launch import Follow, launch
from taskq.locks import Lock
from taskq.message import Publication, dead_letter_queue
from taskq.options import identifier
from taskq.plan import Plan
from taskq.preflight import check_later
from taskq.results import open_store
from taskq.results.group import SAVED, GroupResult, restored
from taskq.results.handle import AsyncResult, Source
from taskq.results.store import Record, ResultStore
from taskq.schedule import Schedule, ScheduleOptions, last_sent, schedule_of
from taskq.serialization import plain_arguments
from taskq.signature import Canvas, FlowOptions, Partial, Signature, canvases_of, endless
from taskq.step import NOTHING_FOLLOWS, Step, has_chord, settled
from taskq.task import Task, TaskOptions, decorated, router, tasks_in
from taskq.workflow import handle_of

P = ParamSpec("P")
R = TypeVar("R")

#: How many messages ``send_many`` has confirmed in one go.
SEND_MANY_BATCH = 1000

logger = log.get_logger("taskq.app")


class TaskQ:
    """An application's tasks and how they reach their workers.

    ``TaskQ("shop")`` alone works: broker and results are one SQLite file in the user's state directory. Every setting of
    ``taskq.config.Settings`` is a keyword; ``TASKQ_…`` environment variables override keywords. Safe for many threads and
    across ``fork``. Raises ``ConfigurationError`` for unknown or impossible settings.
    """

    def __init__(self, name: str, broker: str | None = None, backend: str | None = None, **settings: Any) -> None:
        self.name = checks.text("the name of an app", name)
        # What is relative stays where it was, whatever folder a task or an import goes to.
        self._folder = config.working_folder()
        self._keywords = {"broker": broker, "backend": backend, **settings}
        self._tasks: dict[str, Task[..., Any]] = {}
        self._schedules: dict[str, Schedule] = {}
        self._scheduled: dict[str, Canvas[Any]] = {}
        self._lock = Lock()
        self._source = Source(self._open_store, self.revoke, self._holds)
        self.configure({})

    def __repr__(self) -> str:
        return f"<TaskQ {self.name}>"

    def configure(self, command_line: Mapping[str, Any]) -> None:
        """Work the settings out again, with these values from the command line on top."""
        self.settings = config.load(self._keywords, command_line=command_line, folder=self._folder)
        self.publisher = Publisher(self.settings, open_session)
        self._store: ResultStore | None = None
        self._checker: Check | None = None

    @contextmanager
    def repointed(self, settings: config.Settings) -> Iterator[None]:
        """Inside the block, these settings hold and connections are made by them; afterwards it is as it was before."""
        kept = self.settings, self.publisher, self._store
        self.settings, self.publisher, self._store = settings, Publisher(settings, open_session), None
        self._checker = None
        try:
            yield
        finally:
            self.close()
            self.settings, self.publisher, self._store = kept
            self._checker = None

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """The tasks by name."""
        return MappingProxyType(self._tasks)

    def routes(self) -> dict[str, str]:
        """The queues of those tasks that name one."""
        return {name: queue for name, task in self._tasks.items() if (queue := task.defaults.get("queue"))}

    def queue_names(self) -> tuple[str, ...]:
        """Every queue that a task or the settings name, the default queue first."""
        named = (task.defaults.get("queue") for task in self._tasks.values())
        queues = (self.settings.default_queue, *self.settings.queue_names, *(queue for queue in named if queue))
        return tuple(dict.fromkeys(queues))

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self, *, bind: Literal[False] = False, **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...
    @overload
    def task(
        self, *, bind: Literal[True], **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[Concatenate[Attempt, P], R]], Task[P, R]]: ...
    def task(self, *function: Any, **options: Any) -> Any:
        """Make a function a task of this app. With ``bind=True`` it receives its ``Attempt`` as the first argument."""

        def decorate(function: Callable[..., Any]) -> Task[..., Any]:
            return self._adopt(Task(function, options))

        return decorated(decorate, function)

    def schedule(
        self, name: str, entry: Crontab | timedelta | str, signature: Canvas[Any], **options: Unpack[ScheduleOptions]
    ) -> Schedule:
        """Have a call, or a workflow, sent whenever the entry is due: a ``crontab``, a ``timedelta`` or a text of cron's.

        See ``ScheduleOptions``. Workers see to it, unless told ``--no-scheduler``, and ``taskq scheduler`` does; however many
        of them run, each tick is sent once. Raises ``ConfigurationError``, and what ``delay`` raises for arguments.
        """
        if checks.text("the name of a schedule", name) in self._schedules:
            raise ConfigurationError(f"two schedules are called {name!r}; give one of them another name")
        self._schedules[name] = schedule = schedule_of(name, entry, signature, **options)
        self._scheduled[name] = signature.clone()
        return schedule

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        """The schedules by name."""
        return MappingProxyType(self._schedules)

    def send_scheduled(self, name: str) -> Any:
        """Send the schedule's call once, now, whenever it is due; returns its result. Raises as ``delay``."""
        return self._send([self._scheduled[name]])[0]

    def last_sent(self) -> dict[str, datetime]:
        """Of the schedules that have been sent, the moment for which that was last the case. Raises ``BrokerError``."""
        ledger = self._open_store().ledger if self.settings.keeps_results else None
        return {} if ledger is None else last_sent(ledger, self.name, self._schedules)

    def include(self, *modules: str) -> None:
        """Import the modules and take in the tasks that they made with ``taskq.task``, or have imported from where these were.

        Raises ``ConfigurationError`` for a module with no task in it.
        """
        for name in modules:
            found = tasks_in(checks.text("the name of a module", name))
            for task in found:
                if task.send is None or (task.send != self._send and task.function.__module__ == name):
                    self._adopt(task)
            if not any(task.send == self._send for task in found):
                raise ConfigurationError(f"there are no tasks in the module {name!r}; they are made with @taskq.task")

    def _adopt(self, task: Task[P, R]) -> Task[P, R]:
        if task.send is not None:
            raise ConfigurationError(f"task {task.name!r} belongs to another app already; a module is included by one app")
        known = self._tasks.get(task.name)
        if known is not None and not same(known.function, task.function):
            raise ConfigurationError(
                f"two tasks are called {task.name!r}, here and at {where(known.function)}; give one a name=, and where a"
                " decorator of yours makes both, have it use functools.wraps"
            )
        if known is not None and (differ := known.differs_in(task)):
            raise ConfigurationError(
                f"task {task.name!r} is made twice, with a different {', '.join(differ)}; make it once, or give one a name="
            )
        task.send = self._send
        self._tasks[task.name] = task
        return task

    def send_task(
        self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[FlowOptions]
    ) -> AsyncResult[Any]:
        """Send a call by the task's name; where this app knows the task, its queue and defaults apply. Raises as ``delay``."""
        if task := self._tasks.get(checks.text("the name of a task", name)):
            known: AsyncResult[Any] = task.apply_async(args, kwargs, **options)
            return known
        given: Any = {option: value for option, value in options.items() if value is not None}
        sent: AsyncResult[Any] = Signature(name, args, kwargs or {}, given, send=self._send).delay()
        return sent

    def send_many(self, signatures: Iterable[Signature[R]]) -> list[AsyncResult[R]]:
        """Send many calls, or workflows, with pipelined confirmations; returns their results in order.

        ``publish_timeout`` applies to each batch of 1,000. When a batch fails, the error's ``confirmed`` holds the ids that
        the broker had taken responsibility for before it; of the failed batch, any may have been taken.
        """
        results: list[AsyncResult[R]] = []
        remaining = canvases_of(signatures)
        while batch := list(itertools.islice(remaining, SEND_MANY_BATCH)):
            for signature in batch:
                signature.check(0)
            try:
                results += self._send(batch)
            except BrokerError as error:
                error.confirmed = tuple(result.id for result in results)
                raise
        return results

    def result(self, task_id: str) -> AsyncResult[Any]:
        """The handle on the result of a task that was sent before, from anywhere."""
        return AsyncResult(checks.text("the id of a task", task_id), self._source)

    def group_result(self, group_id: str) -> GroupResult[Any]:
        """The handle on a group that was saved before with ``save_group``; raises ``ResultError`` if there is none."""
        document = self._open_store().document(SAVED.format(checks.text("the id of a group", group_id)))
        if document is None:
            raise ResultError(f"no group {group_id} was saved, or it was too long ago; save one with app.save_group(result)")
        return restored(document, self.result)

    def save_group(self, result: GroupResult[Any]) -> None:
        """Keep which members the group has, as long as results are kept, for ``group_result`` in another process."""
        self._open_store().keep(SAVED.format(result.id), result.document(), self.settings.result_ttl)

    def workflow(self, task_id: str) -> tuple[Plan | None, list[Record]]:
        """The plan of a workflow, by the id of its result, its first task or group, or a task of it that has begun.

        With it come the records of those of its tasks that have begun or ended; None where there is no such plan.
        """
        store = self._open_store()
        found = plan.find(checks.text("the id of a task", task_id), store)
        ids = [str(task.id) for task in found.tasks()] if found is not None else []
        return found, [record for record in store.fetch(ids) if record is not None]

    def revoke(self, task_id: str, terminate: bool = False) -> None:
        """Have the task not run any more, wherever it waits and whoever is up; with ``terminate``, end it where it runs, too.

        Returns once the broker keeps this for every worker, those to come included, or raises as ``delay``.
        """
        self.publisher.control(
            Revoke(identifier("the id of a task", task_id), checks.truth("terminate", terminate), time.time())
        )

    def pause(self, queue: str) -> None:
        """Have workers fetch nothing from the queue, until ``resume``. Calls are accepted as ever. Raises as ``delay``."""
        self.publisher.control(Pause(checks.text("queue", queue), time.time()))

    def resume(self, queue: str) -> None:
        """Have workers fetch from the queue again. Raises as ``delay``."""
        self.publisher.control(Resume(checks.text("queue", queue), time.time()))

    def paused(self) -> frozenset[str]:
        """The queues that are paused."""
        standing = Standing()
        standing.fold(self.publisher.controls())
        return frozenset(standing.paused)

    def dead_letters(self, queue: str | None = None, **selection: Unpack[Selection]) -> Iterator[DeadLetter]:
        """The dead letters of the queue, or of every queue that the app names, oldest first; see ``Selection`` for which.

        They are read while you iterate, however many there are, and stay where they are; RabbitMQ may mix their order then.
        """
        return graveyard.visit(self.publisher, self._dead_queues(queue), Filter.of(selection))

    def replay(
        self,
        queue: str | None = None,
        *,
        rate: float | None = None,
        dry_run: bool = False,
        **selection: Unpack[Selection],
    ) -> int:
        """Send dead letters to their queues again, at most ``rate`` a second; returns how many. Selected as ``dead_letters``.

        Counters start anew, the id stays. A letter is kept until the broker has confirmed its copy, so none is lost whenever
        this is interrupted. Where it fails, the error's ``confirmed`` holds the ids of those that were sent before.
        """
        queues, wanted = self._dead_queues(queue), Filter.of(selection)
        if dry_run:
            return sum(1 for _ in graveyard.visit(self.publisher, queues, wanted))
        return graveyard.count(graveyard.replay(self.publisher, queues, wanted, rate=rate))

    def purge_dead(self, queue: str | None = None, *, dry_run: bool = False, **selection: Unpack[Selection]) -> int:
        """Delete dead letters for good; returns how many. Selected as ``dead_letters``, errors as ``replay``."""
        queues, wanted = self._dead_queues(queue), Filter.of(selection)
        if dry_run:
            return sum(1 for _ in graveyard.visit(self.publisher, queues, wanted))
        return graveyard.purge(self.publisher, queues, wanted)

    def _dead_queues(self, queue: str | None) -> tuple[str, ...]:
        """The queues whose dead letters are meant; a dead-letter queue stands for its queue."""
        return self.queue_names() if queue is None else (checks.text("queue", queue).removesuffix(dead_letter_queue("")),)

    def _send(self, canvases: Sequence[Canvas[Any]], values: Sequence[Any] = ()) -> list[Any]:
        parent, now = current_attempt(), time.time()
        store = self._open_store() if self.settings.replies else None
        family = Family(reply_to=store.reply_to if store is not None else None)
        if parent is not None:
            family = Family(parent.id, parent.root_id or parent.id, family.reply_to)
        publications: list[Publication] = []
        results: list[Any] = []
        workflows: list[tuple[Step, Follow]] = []
        for canvas in canvases:
            if isinstance(canvas, Partial) and not canvas.follows and not values:
                publication = self._compose(canvas, family, now)
                publications.append(publication)
                handle = self.result(publication.message.headers["id"])
                handle.ignored = bool(canvas.options.get("ignore_result"))
                results.append(handle)
            else:
                step, follow = self._begin(canvas, values, family, now)
                publications += follow.publish
                results.append(handle_of(step, self.result))
                workflows.append((step, follow))
        check = self._check()
        for publication in publications:
            check(publication)
        self._prepare(workflows)
        self.publisher.publish(publications)
        return results

    def _compose(self, call: Partial[Any], family: Family, now: float) -> Publication:
        """The message of a call that nothing follows."""
        args, kwargs = plain_arguments(call.task, call.args, call.kwargs, call.parameters)
        body = msgspec.json.encode((args, kwargs, NOTHING_FOLLOWS))
        return compose(call.task, body, call.options, self._route(call.task), family, now)

    def _begin(self, canvas: Canvas[Any], values: Sequence[Any], family: Family, now: float) -> tuple[Step, Follow]:
        """The workflow in order, each task of it checked, and what its beginning publishes."""
        try:
            step = settled(canvas.step())
            if not family.root_id:
                family = Family(None, plan.root_of(step), family.reply_to)
            check_later(step, family, self._route, now, self._check())
            return step, launch(step, plain_arguments(step.task, values, {})[0], family, self._route, now)
        except MessageError as error:
            raise ConfigurationError(str(error)) from None
        except RecursionError:
            raise endless() from None

    def _check(self) -> Check:
        """What finds out whether a publication can be sent; made by the first call: drivers take long to import."""
        if self._checker is None:
            self._checker = sending.checker(self.settings)
        return self._checker

    def _route(self, task: str) -> str:
        return router(self._tasks, self.settings.default_queue)(task)

    def _prepare(self, workflows: Sequence[tuple[Step, Follow]]) -> None:
        """Open the chords that begin, and keep the workflows' plans for whoever wants to see them."""
        if not workflows:
            return
        if not self.settings.keeps_results:
            if any(map(has_chord, (step for step, _ in workflows))):
                backend = masked(self.settings.backend)
                raise UnsupportedFeature(f"a chord needs a backend that counts (sqlite, redis, postgresql), not {backend!r}")
            return
        store = self._open_store()
        if (barriers := [barrier for _, follow in workflows for barrier in follow.barriers]) and store.chords is not None:
            store.chords.open(barriers)
        try:
            for step, _ in workflows:
                if step.subtask_type is not None:
                    plan.keep(step, store, self.settings.result_ttl)
        except BrokerError as error:
            # It would run all the same, but for nobody to look at.
            logger.warning("workflow_not_kept", error=str(error))

    def _open_store(self) -> ResultStore:
        with self._lock:
            if self._store is None:
                url = self.settings.backend_url
                if url is None:
                    raise ResultsDisabled(
                        "no backend is configured, so no results are kept; give TaskQ(backend=…) or TASKQ_BACKEND"
                    )
                self._store = open_store(url, self.settings.result_ttl, open_replies=self._open_replies)
            return self._store

    def _holds(self, task_id: str) -> bool | None:
        return self.publisher.holds(task_id)

    def _open_replies(self, take: TakeReply) -> Replies:
        return open_replies(self.settings, take)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self.publisher.close()
        with self._lock:
            store, self._store = self._store, None
        if store is not None:
            store.close()
