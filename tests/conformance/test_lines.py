"""Lines: what nobody keeps reaches whoever listens at that moment, on every broker."""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from taskq.broker import open_caller, open_line
from taskq.broker.interface import Line
from taskq.broker.pidbox import COMMANDS, Clock, Mailbox
from taskq.config import Settings
from taskq.errors import BrokerError
from taskq.message import Message
from tests.conformance.support import only, process, read_line
from tests.support import Stage, eventually

#: The type of queue that tasks wait in makes no difference here.
pytestmark = only("sqlite", "quorum")


@contextmanager
def line_to(settings: Settings) -> Iterator[Line]:
    line = open_line(settings, "test", 5.0)
    try:
        yield line
    finally:
        line.close()


def turn(*lines: Line, seconds: float = 0.05) -> None:
    """Let these lines do what there is to do, and wait shortly where that is nothing."""
    wait = min([seconds, *[line.turn() for line in lines]])
    select.select([line.fileno() for line in lines], [], [], wait)


def heard(lines: Sequence[Line], posts: Sequence[list[Message]], count: int) -> None:
    """Wait until so many posts have come to each."""

    def enough() -> bool:
        turn(*lines)
        return all(len(received) >= count for received in posts)

    eventually(enough, f"{count} posts each")


def test_a_fanout_reaches_all_who_listen_and_nobody_later(settings: Settings, queue: str) -> None:
    first: list[Message] = []
    second: list[Message] = []
    with line_to(settings) as sender, line_to(settings) as left, line_to(settings) as right:
        sender.publish(f"{queue}.x", "fanout", "", b"[0]", {})
        sender.turn()
        left.listen(f"{queue}.x", "fanout", f"{queue}.left", "", first.append)
        right.listen(f"{queue}.x", "fanout", f"{queue}.right", "", second.append)
        for number in range(1, 4):
            sender.publish(f"{queue}.x", "fanout", "", f"[{number}]".encode(), {"clock": number, "text": "Grüße"})
        heard([sender, left, right], [first, second], 3)
    assert [post.body for post in first] == [post.body for post in second] == [b"[1]", b"[2]", b"[3]"]
    assert (first[0].headers["clock"], first[0].headers["text"]) == (1, "Grüße")
    assert (first[0].content_type, first[0].content_encoding) == ("application/json", "utf-8")


def test_a_topic_reaches_those_whose_key_fits(settings: Settings, queue: str) -> None:
    tasks: list[Message] = []
    everything: list[Message] = []
    with line_to(settings) as sender, line_to(settings) as some, line_to(settings) as every:
        some.listen(f"{queue}.t", "topic", f"{queue}.some", "task.#", tasks.append)
        every.listen(f"{queue}.t", "topic", f"{queue}.every", "#", everything.append)
        for key in ("worker.online", "task.multi", "task.sent"):
            sender.publish(f"{queue}.t", "topic", key, key.encode(), {})
        heard([sender, some, every], [everything], 3)
        heard([sender, some, every], [tasks], 2)
    assert [post.body for post in tasks] == [b"task.multi", b"task.sent"]


def test_a_large_post_arrives_whole(settings: Settings, queue: str) -> None:
    posts: list[Message] = []
    body = b'"' + b"x" * 3_000_000 + b'"'
    with line_to(settings) as sender, line_to(settings) as receiver:
        receiver.listen(f"{queue}.x", "fanout", f"{queue}.receiver", "", posts.append)
        sender.publish(f"{queue}.x", "fanout", "", body, {})
        heard([sender, receiver], [posts], 1)
    assert posts[0].body == body


def test_nothing_is_left_of_a_listener_that_was_killed(stage: Stage, settings: Settings, queue: str) -> None:
    with process(stage, "listen") as listener, line_to(settings) as sender:
        assert read_line(listener) == b"listening\n"
        sender.publish(f"{queue}.x", "fanout", "", b"[1]", {})
        sender.turn()
        assert read_line(listener) == b"[1]\n"
        listener.send_signal(signal.SIGKILL)
        listener.wait()
        posts: list[Message] = []

        def succeed() -> Line | None:
            line = open_line(settings, "test", 5.0)
            try:
                assert sender.listeners(f"{queue}.x") in (None, 0)
                line.listen(f"{queue}.x", "fanout", f"{queue}.own", "", posts.append)
            except BrokerError:
                # the broker has yet to notice
                line.close()
                return None
            return line

        # The same name is free again, and what comes now is this one's alone.
        successor = eventually(succeed, "the name is free")
        assert successor is not None
        with closing(successor):
            sender.publish(f"{queue}.x", "fanout", "", b"[2]", {})
            heard([sender, successor], [posts], 1)
    assert [post.body for post in posts] == [b"[2]"]


@contextmanager
def mailbox_of(settings: Settings, node: str) -> Iterator[Mailbox]:
    mailbox = Mailbox(open_line(settings, "test", 5.0), node, Clock())
    try:
        yield mailbox
    finally:
        mailbox.close()


def test_commands_reach_those_that_are_meant(settings: Settings, queue: str) -> None:
    with mailbox_of(settings, f"{queue}@a") as a, mailbox_of(settings, f"{queue}@b") as b, line_to(settings) as sender:
        arrived: dict[str, list[str]] = {"a": [], "b": []}

        def say(method: str, body: bytes, count: tuple[int, int], expires: float = 0.0) -> None:
            sender.publish(COMMANDS, "fanout", "", body, {"clock": 41, "expires": expires})

            def come() -> bool:
                sender.turn()
                for name, mailbox in (("a", a), ("b", b)):
                    arrived[name] += [command.method for command in mailbox.turn()[0] if command.method == method]
                return (arrived["a"].count(method), arrived["b"].count(method)) == count

            eventually(come, method)

        say("to-one", f'{{"method":"to-one","destination":["{queue}@b"]}}'.encode(), (0, 1))
        say("to-a-pattern", f'{{"method":"to-a-pattern","pattern":"{queue}@[a]","matcher":"glob"}}'.encode(), (1, 0))
        # These are nobody's, and hurt nobody: the last one says that they have passed.
        say("none", b"no JSON", (0, 0))
        say("none", b'["a list"]', (0, 0))
        say("none", b'{"method":7}', (0, 0))
        say("stale", b'{"method":"stale"}', (0, 0), time.time() - 1000)
        say("none", f'{{"method":"none","pattern":"{queue}@[ab]$","matcher":"pcre"}}'.encode(), (0, 0))
        say("to-both", f'{{"method":"to-both","pattern":"{queue}@[ab]","matcher":"glob"}}'.encode(), (1, 1))
        assert not {"stale", "none"} & {*arrived["a"], *arrived["b"]}


def test_a_caller_gets_the_answers_of_the_moment(stage: Stage, settings: Settings, queue: str) -> None:
    with process(stage, "answer") as left, process(stage, "answer") as right:
        names = sorted(read_line(one).decode().strip() for one in (left, right))
        with open_caller(settings) as caller:
            answers = caller.ask("sum", {"of": [1, 2]}, pattern=f"{queue}@*", timeout=1.0)
            assert answers == {name: {"method": "sum", "arguments": {"of": [1, 2]}} for name in names}
            began = time.monotonic()
            assert caller.ask("ping", nodes=[names[0]], timeout=10.0) == {names[0]: {"method": "ping", "arguments": {}}}
            assert time.monotonic() - began < 5.0
            assert caller.ask("ping", nodes=[f"{queue}@nobody"], timeout=0.2) == {}
