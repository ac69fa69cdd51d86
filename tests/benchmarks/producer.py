"""The one producer process of a measurement, in the environment of the system that is measured.

``python -m tests.benchmarks.producer MODULE SENDER rate|latency FIRST COUNT`` prints tasks per second or a list of seconds.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable

from tests.benchmarks.stamps import shared

Sender = Callable[[Iterable[int]], None]

#: The first tasks connect and declare, and are not counted.
WARM_UP = 10
#: How long a worker is left alone before the next sample of latency, in seconds.
PAUSE = 0.01
#: Latency is sampled for so long at most, in seconds: a system that polls would need minutes.
LATENCY_SECONDS = 3.0


def rate(send: Sender, first: int, count: int) -> float:
    """Tasks accepted per second."""
    warm_up = min(WARM_UP, count // 2)
    send(range(first, first + warm_up))
    started = time.perf_counter()
    send(range(first + warm_up, first + count))
    return (count - warm_up) / (time.perf_counter() - started)


def latency(send: Sender, first: int, count: int) -> list[float]:
    """Seconds from the call to the first line of the task, one task at a time, for an idle worker."""
    times, seconds = shared(), []
    end = time.monotonic() + LATENCY_SECONDS
    for position in range(WARM_UP + count):
        called = time.monotonic()
        if called > end:
            break
        send((first + position,))
        while not times[first + position]:
            time.sleep(0.0005)
        if position >= WARM_UP:
            seconds.append(times[first + position] - called)
        time.sleep(PAUSE)
    return seconds


def main() -> None:
    module, sender, measure, first, count = sys.argv[1:]
    system = importlib.import_module(module)
    print(json.dumps({"rate": rate, "latency": latency}[measure](system.SENDERS[sender], int(first), int(count))))
    system.close()  # a connection that just ends may take with it what was sent without confirms


if __name__ == "__main__":
    main()
