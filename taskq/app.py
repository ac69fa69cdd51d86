"""The app: the composition root. It knows the tasks, the settings, the broker and the backend, and puts them together."""

from __future__ import annotations

import importlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack, overload

from taskq import config, graveyard
from taskq.attempt import Attempt, current_attempt
from taskq.broker import open_session
from taskq.broker.publisher import Publisher
from taskq.control import Pause, Resume, Revoke, Standing
from taskq.dead import DeadLetter, Filter, Selection
from taskq.errors import BrokerError, ConfigurationError, MessageTooLarge, ResultsDisabled
from taskq.message import Publication, dead_letter_queue
from taskq.results import open_store
from taskq.results.handle import AsyncResult
from taskq.results.store import ResultStore
from taskq.signature import SendOptions, Signature, compose
from taskq.task import Task, TaskOptions

P = ParamSpec("P")
R = TypeVar("R")

#: How many messages ``send_many`` has confirmed in one go.
SEND_MANY_BATCH = 1000


class TaskQ:
    """An application's tasks and how they reach their workers.

    ``TaskQ("shop")`` alone works: broker and results are one SQLite file in the user's state directory. Every setting of
    ``taskq.config.Settings`` is a keyword; ``TASKQ_…`` environment variables override keywords. Safe for many threads and
    across ``fork``. Raises ``ConfigurationError`` for unknown or impossible settings.
    """

    def __init__(self, name: str, broker: str | None = None, backend: str | None = None, **settings: Any) -> None:
        self.name = name
        self._keywords = {"broker": broker, "backend": backend, **settings}
        self._tasks: dict[str, Task[..., Any]] = {}
        self._lock = threading.Lock()
        self.configure({})

    def __repr__(self) -> str:
        return f"<TaskQ {self.name}>"

    def configure(self, command_line: Mapping[str, Any]) -> None:
        """Work the settings out again, with these values from the command line on top."""
        self.settings = config.load(self._keywords, command_line=command_line)
        self.publisher = Publisher(self.settings, open_session)
        self._store: ResultStore | None = None

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """The tasks by name."""
        return MappingProxyType(self._tasks)

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
            return self._adopt(Task(function, options, main_name=self.name))

        return decorate(*function) if function else decorate

    def include(self, *modules: str) -> None:
        """Import the modules and take in the tasks that they made with ``taskq.task``."""
        for name in modules:
            for value in list(vars(importlib.import_module(name)).values()):
                if isinstance(value, Task) and value.send != self._send and value.function.__module__ == name:
                    self._adopt(value)

    def _adopt(self, task: Task[P, R]) -> Task[P, R]:
        if task.send is not None:
            raise ConfigurationError(f"task {task.name!r} belongs to another app already; a module is included by one app")
        known = self._tasks.get(task.name)
        if known is not None and known.function.__code__ is not task.function.__code__:
            where = known.function.__code__
            raise ConfigurationError(
                f"two tasks are called {task.name!r}, here and at {where.co_filename}:{where.co_firstlineno}; give one a name="
            )
        task.send = self._send
        self._tasks[task.name] = task
        return task

    def send_task(
        self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[SendOptions]
    ) -> AsyncResult[Any]:
        """Send a call by the task's name; where this app knows the task, its queue and defaults apply. Raises as ``delay``."""
        if task := self._tasks.get(name):
            return task.apply_async(args, kwargs, **options)
        given: Any = {option: value for option, value in options.items() if value is not None}
        return self._send([Signature(name, args, kwargs or {}, given)])[0]

    def send_many(self, signatures: Iterable[Signature[R]]) -> list[AsyncResult[R]]:
        """Send many calls with pipelined confirmations; returns their results in order.

        ``publish_timeout`` applies to each batch of 1,000. When a batch fails, the error's ``confirmed`` holds the ids that
        the broker had taken responsibility for before it; of the failed batch, any may have been taken.
        """
        results: list[AsyncResult[R]] = []
        remaining = iter(signatures)
        while batch := list(itertools.islice(remaining, SEND_MANY_BATCH)):
            try:
                results += self._send(batch)
            except BrokerError as error:
                error.confirmed = tuple(result.id for result in results)
                raise
        return results

    def result(self, task_id: str) -> AsyncResult[Any]:
        """The handle on the result of a task that was sent before, from anywhere."""
        return AsyncResult(task_id, self._open_store, self.revoke)

    def revoke(self, task_id: str, terminate: bool = False) -> None:
        """Have the task not run any more, wherever it waits and whoever is up; with ``terminate``, end it where it runs, too.

        Returns once the broker keeps this for every worker, those to come included, or raises as ``delay``.
        """
        self.publisher.control(Revoke(task_id, terminate, time.time()))

    def pause(self, queue: str) -> None:
        """Have workers fetch nothing from the queue, until ``resume``. Calls are accepted as ever. Raises as ``delay``."""
        self.publisher.control(Pause(queue, time.time()))

    def resume(self, queue: str) -> None:
        """Have workers fetch from the queue again. Raises as ``delay``."""
        self.publisher.control(Resume(queue, time.time()))

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
        return self.queue_names() if queue is None else (queue.removesuffix(dead_letter_queue("")),)

    def _send(self, signatures: Sequence[Signature[Any]]) -> list[AsyncResult[Any]]:
        parent, now = current_attempt(), time.time()
        publications = [
            compose(signature, default_queue=self.settings.default_queue, parent=parent, now=now) for signature in signatures
        ]
        for publication in publications:
            self._check_size(publication)
        self.publisher.publish(publications)
        return [self.result(publication.message.headers["id"]) for publication in publications]

    def _check_size(self, publication: Publication) -> None:
        size, limit = len(publication.message.body), self.settings.max_message_bytes
        if size > limit:
            raise MessageTooLarge(
                f"task {publication.message.headers['task']!r}: its message is {size} bytes, over max_message_bytes={limit}; "
                "store the data elsewhere and send where it is"
            )

    def _open_store(self) -> ResultStore:
        with self._lock:
            if self._store is None:
                url = self.settings.backend_url
                if url is None:
                    raise ResultsDisabled(
                        "no backend is configured, so no results are kept; give TaskQ(backend=…) or TASKQ_BACKEND"
                    )
                self._store = open_store(url, self.settings.result_ttl)
            return self._store

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self.publisher.close()
        with self._lock:
            store, self._store = self._store, None
        if store is not None:
            store.close()
