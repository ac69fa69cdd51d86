"""Threads that use a broker for the first time at once: one of them imports its driver, and the others find it whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import random, sys, threading, time
from importlib.machinery import SourceFileLoader
from taskq import broker, config

chance, whole = random.Random(sys.argv[2]), SourceFileLoader.exec_module

def slowly(loader, module):
    if module.__name__.startswith("kombu"):
        time.sleep(chance.random() / 100)
    whole(loader, module)

SourceFileLoader.exec_module = slowly
settings = config.load({"broker": sys.argv[1]}, environment={})
uses = [
    lambda: broker.open_session(settings, 5.0),
    lambda: broker.open_line(settings, "first", 5.0),
    lambda: broker.open_caller(settings),
    lambda: broker.open_consumer(settings, ["first"]),
]
together, failed = threading.Barrier(len(uses)), []

def use(thing):
    together.wait()
    try:
        thing()
    except BaseException as error:
        failed.append(error)

threads = [threading.Thread(target=use, args=(thing,)) for thing in uses]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(failed)
"""


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_threads_that_begin_at_once(tmp_path: Path, seed: str) -> None:
    command = [sys.executable, "-c", PROGRAM, f"sqlite:///{tmp_path}/taskq.db", seed]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip() == "[]"
