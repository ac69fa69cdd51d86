"""What new code may change, and what is remembered of the tasks that ran."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from taskq import config
from taskq.config import Settings
from taskq.workers.outcome import SUCCEEDED
from taskq.workers.reload import RECENT_SECONDS, TAKEN_OVER, Recent, cannot_follow, consumed
from taskq.workers.sources import source_folders
from taskq.workers.vitals import Vitals
from taskq.workers.zygote import Ready


def ready(*queues: str, **settings: Any) -> Ready:
    effective = config.load({"broker": "sqlite:////tmp/shop.db", **settings}, environment={})
    return Ready("1", "shop", effective, ("default", *queues), ("buy",), "fork", 0, {}, [], ())


def test_every_name_of_what_is_taken_over_is_a_setting() -> None:
    assert {field.name for field in fields(Settings)} >= TAKEN_OVER


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (ready(), ""),
        (ready(time_limit=5.0, concurrency=7, grace=1.0, default_queue="default"), ""),
        (ready(broker="sqlite:////tmp/other.db"), "broker, backend"),
        (ready(heartbeat=5.0), "heartbeat"),
        (ready("mail"), "+mail"),
        (msgspec.structs.replace(ready(), app="store"), "'store'"),
        (msgspec.structs.replace(ready(), version="2"), "from 1 to 2"),
    ],
)
def test_what_a_worker_can_follow(new: Ready, why: str) -> None:
    said = cannot_follow(ready(), new)
    assert why in said
    assert bool(said) == bool(why)


def test_queues_that_the_worker_was_told_to_consume_do_not_depend_on_the_code() -> None:
    old, new = ready(queues="mail"), ready("reports", queues="mail")
    assert consumed(old) == consumed(new) == ("mail",)
    assert cannot_follow(old, new) == ""


def test_which_tasks_ran_of_late() -> None:
    vitals, recent = Vitals(0.0), Recent(0.0)
    vitals.ended("early", SUCCEEDED)
    assert recent.tasks(vitals, 1.0) == {"early"}
    assert recent.tasks(vitals, RECENT_SECONDS + 1) == {"early"}
    vitals.ended("late", SUCCEEDED)
    assert recent.tasks(vitals, 2 * RECENT_SECONDS) == {"early", "late"}
    assert recent.tasks(vitals, 2 * RECENT_SECONDS + 2) == {"late"}
    assert recent.tasks(vitals, 3 * RECENT_SECONDS + 3) == set()


def test_the_source_of_an_application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "stock": "shop/stock/__init__.py",
        "stock.items.small": "shop/stock/items/small.py",
        "single": "shop/single.py",
        "elsewhere": "other/elsewhere.py",
        "bought": "lib/site-packages/bought/__init__.py",
    }
    for name, file in files.items():
        module = ModuleType(name)
        module.__file__ = str(tmp_path / file)
        monkeypatch.setitem(sys.modules, name, module)
    folders = [folder for folder in source_folders() if folder.startswith(str(tmp_path))]
    assert folders == [str(tmp_path / "other"), str(tmp_path / "shop")]
    assert not any(Path(pytest.__file__).is_relative_to(folder) for folder in source_folders() if folder.startswith(sys.prefix))
