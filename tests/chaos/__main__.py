"""``python -m tests.chaos --seconds N --seed S --broker sqlite|rabbitmq``: chaos, and whether taskq kept its promises."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.chaos.arena import rabbitmq_arena, sqlite_arena
from tests.chaos.plague import plague
from tests.chaos.storm import WORKERS, storm

ARENAS = {"sqlite": sqlite_arena, "rabbitmq": rabbitmq_arena}


def main() -> int:
    """Run the storms that the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each broker's storm lasts, without its recovery")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="chooses what happens; random by default")
    parser.add_argument("--broker", choices=ARENAS, action="append", help="only this broker")
    parser.add_argument("--workers", type=int, default=WORKERS, help="how many workers; 3 by default")
    parser.add_argument("--plague", type=int, metavar="N", help="instead, N tasks that kill their worker among 1,000 good ones")
    parser.add_argument("--keep", type=Path, help="keep the ledger and the logs in this folder")
    options = parser.parse_args()
    # So that a storm that is told to end takes its workers, its server and its disk along.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    console, failed = Console(), False
    print(f"seed {options.seed}", flush=True)
    for broker in options.broker or ARENAS:
        with tempfile.TemporaryDirectory(prefix="taskq-chaos-") as temporary:
            folder = options.keep / broker if options.keep else Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            with ARENAS[broker](folder) as arena:
                if options.plague:
                    report = plague(arena, options.seed, options.plague, workers=options.workers)
                else:
                    report = storm(arena, options.seed, options.seconds, options.workers)
        console.print(report.table())
        print(report.text(), end="", flush=True)
        failed = failed or bool(report.faults)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
