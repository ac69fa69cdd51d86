"""The caller's handle on the results of a group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Generic, TypeVar

import msgspec

from taskq import checks
from taskq.decoding import decoded
from taskq.errors import MessageError, ResultTimeout
from taskq.results.handle import AsyncResult

R = TypeVar("R")
#: The document that holds a saved group, as Celery names it.
SAVED = "celery-taskset-meta-{}"


class GroupResult(Generic[R]):
    """The ends of the members of a group, in its order. Names are Celery's."""

    def __init__(self, group_id: str, results: Sequence[AsyncResult[R]]) -> None:
        self.id = group_id
        self.results = tuple(results)
        #: What came before the group in its workflow.
        self.parent: AsyncResult[Any] | GroupResult[Any] | None = None

    @classmethod
    def of_nothing(cls) -> GroupResult[R]:
        """That of an empty group, which has ended."""
        return cls("", ())

    def __repr__(self) -> str:
        return f"<GroupResult {self.id}, {len(self.results)} results>"

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[AsyncResult[R]]:
        return iter(self.results)

    def __getitem__(self, index: int) -> AsyncResult[R]:
        return self.results[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GroupResult) and (other.id, other.results) == (self.id, self.results)

    def __hash__(self) -> int:
        return hash(self.id)

    def get(self, timeout: float | timedelta | None = None, *, propagate: bool = True) -> list[R]:
        """The return values of all members, as soon as there are all of them; ``timeout`` is in seconds, for all together.

        Raises what the first member that failed raised; with ``propagate=False``, the exception stands in the value's place.
        Raises ``ResultTimeout``, and ``BackendError`` where the results can't be had.
        """
        seconds = checks.timeout(timeout)
        give_up = None if seconds is None else time.monotonic() + seconds
        values: list[Any] = []
        for result in self.results:
            left = None if give_up is None else max(0.0, give_up - time.monotonic())
            if not result.wait(left):
                raise ResultTimeout(
                    f"{len(self) - self.completed_count()} of {len(self)} members of group {self.id} have not ended within "
                    f"{seconds} s; they may still end"
                )
            try:
                values.append(result.get())
            except Exception as error:
                if propagate:
                    raise
                values.append(error)
        return values

    join = get

    def wait(self, timeout: float | timedelta | None = None) -> bool:
        """Wait until all members have ended, or ``timeout`` seconds; returns whether they have."""
        seconds = checks.timeout(timeout)
        give_up = None if seconds is None else time.monotonic() + seconds
        return all(result.wait(None if give_up is None else max(0.0, give_up - time.monotonic())) for result in self.results)

    def ready(self) -> bool:
        """Whether all members have ended."""
        return self.completed_count() == len(self)

    def completed_count(self) -> int:
        """How many members have ended, well or badly."""
        return sum(result.ready() for result in self.results)

    def successful(self) -> bool:
        """Whether all members have ended well."""
        return all(result.status in ("SUCCESS", "IGNORED") for result in self.results)

    def failed(self) -> bool:
        """Whether a member has ended badly."""
        return any(result.status in ("FAILURE", "REVOKED") for result in self.results)

    def revoke(self, terminate: bool = False) -> None:
        """Have no member run any more; with ``terminate``, end them where they run."""
        for result in self.results:
            result.revoke(terminate)

    def forget(self) -> None:
        """Delete the members' results."""
        for result in self.results:
            result.forget()

    def document(self) -> bytes:
        """It as Celery saves it: its id, and those of its members."""
        return msgspec.json.encode({"result": [[self.id, None], [[[result.id, None], None] for result in self.results]]})


def restored(document: bytes, result: Callable[[str], AsyncResult[Any]]) -> GroupResult[Any]:
    """The group result in a document that was saved; raises ``MessageError``."""
    match decoded(msgspec.json.decode, document, "the saved group"):
        case {"result": [[str() as group_id, _], [*members]]}:
            return GroupResult(group_id, [result(task_id) for task_id in map(_member_id, members)])
    raise MessageError("the document is no saved group")


def _member_id(member: Any) -> str:
    match member:
        case [[str() as task_id, _], _]:
            return task_id
    raise MessageError(f"{member!r} is no member of a saved group")
