"""The arena: a broker that can be hurt, and a stage on it. What hurts is undone by whoever caused it, in the same call."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Protocol

from taskq.message import dead_letter_queue
from tests.proxy import Proxy
from tests.servers import RabbitMQ
from tests.support import Stage

QUEUE = "chaos"
DISK_BYTES = 96 * 1024 * 1024
#: So that a producer gives up on a call soon enough to go on with the next one.
PUBLISH_TIMEOUT = 3.0

#: Every end that is ever recorded, not only the last one of each id.
_AUDIT = """
create table ends (id text not null, status text not null, at real not null);
create trigger ends_first after insert on results begin
    insert into ends values (new.id, new.status, (julianday('now') - 2440587.5) * 86400.0);
end;
create trigger ends_again after update on results begin
    insert into ends values (new.id, new.status, (julianday('now') - 2440587.5) * 86400.0);
end;
"""


class Hurt(Protocol):
    """Something that is done to the broker as a whole; it is over when the call returns."""

    def __call__(self, chance: Random, /) -> None:
        """Do it, and undo it."""


class Arena:
    """A stage on a broker, and what can be done to the broker (``hurts``).

    ``one_transaction`` says whether broker and results are one database: then nothing may be done twice unless a run of it
    was interrupted.
    """

    def __init__(self, stage: Stage, database: Path, hurts: Mapping[str, Hurt], *, one_transaction: bool) -> None:
        self.stage = stage
        self.database = database
        self.hurts = hurts
        self.one_transaction = one_transaction
        # Asking for a result creates the file and its tables.
        assert not stage.client().result("none").ready()
        with self.connection() as connection:
            connection.executescript(_AUDIT)

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """The results' file, past taskq."""
        connection = sqlite3.connect(self.database, timeout=10.0)
        try:
            yield connection
        finally:
            connection.close()

    def ended(self) -> set[str]:
        """The ids that have an end."""
        with self.connection() as connection:
            return {
                task_id for (task_id,) in connection.execute("select id from results where status not in ('STARTED', 'RETRY')")
            }

    def left(self) -> dict[str, int]:
        """The queues that are not empty, dead letters aside."""
        if self.one_transaction:
            with self.connection() as connection:
                counts = dict(connection.execute("select queue, count(*) from messages group by queue").fetchall())
        else:
            names = (QUEUE, f"{QUEUE}.returned")
            counts = {name: depth for name in names if (depth := self.stage.depth(name))}
        return {name: count for name, count in counts.items() if name != dead_letter_queue(QUEUE)}


@contextmanager
def sqlite_arena(folder: Path) -> Iterator[Arena]:
    """The embedded broker, on a small disk of its own where we may mount one."""
    disk = folder / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and _mount(disk)
    if not mounted:
        print("the disk is not filled: mounting a small one takes root")
    stage = Stage(f"sqlite:///{disk}/taskq.db", QUEUE, folder, {"publish_timeout": PUBLISH_TIMEOUT})

    def fill(chance: Random) -> None:
        """Leave no byte free for a while."""
        ballast = disk / "ballast"
        end = time.monotonic() + chance.uniform(0.3, 2.0)
        with ballast.open("wb", buffering=0) as file:
            while time.monotonic() < end:
                try:
                    file.write(b"\0" * 4096)
                except OSError:
                    # What others free meanwhile is filled again.
                    time.sleep(0.01)
        ballast.unlink()

    try:
        yield Arena(stage, disk / "taskq.db", {"full disk": fill} if mounted else {}, one_transaction=True)
    finally:
        stage.close()
        if mounted:
            # for who looks into a failure, where the folder is kept
            shutil.copy(disk / "taskq.db", folder)
            subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "taskq-chaos", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@contextmanager
def rabbitmq_arena(folder: Path) -> Iterator[Arena]:
    """A RabbitMQ node of one's own behind a proxy."""
    node = RabbitMQ()
    try:
        node.start()
        with Proxy(node.port) as proxy:
            url = node.url.replace(str(node.port), str(proxy.port))
            stage = Stage(url, QUEUE, folder, {"publish_timeout": PUBLISH_TIMEOUT})
            yield Arena(stage, folder / "results.db", _hurts(node, proxy), one_transaction=False)
            stage.close()
    finally:
        node.stop()


def _hurts(node: RabbitMQ, proxy: Proxy) -> dict[str, Hurt]:
    synced = threading.Event()

    def restart(chance: Random) -> None:
        """SIGKILL the node; it comes back on its data."""
        if not synced.is_set():
            node.sync()
            synced.set()
        node.kill()
        time.sleep(chance.uniform(0.0, 0.5))
        node.start()

    def cut_all(chance: Random) -> None:
        """Reset every connection."""
        proxy.cut()

    def cut_one(chance: Random) -> None:
        """Reset one connection."""
        proxy.cut(chance.randrange(max(1, proxy.connections)))

    def stall(chance: Random) -> None:
        """Let nothing through for a moment; nobody may take that for an end."""
        proxy.stall()
        time.sleep(chance.uniform(0.2, 1.5))
        proxy.flow()

    return {"broker": restart, "cut all": cut_all, "cut one": cut_one, "stall": stall}
