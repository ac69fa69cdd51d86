"""``taskq worker --reload``: what is saved runs."""

from __future__ import annotations

import time

from tests.integration.shop import Customers, Shop, settled_bill
from tests.support import ROOT, Stage, eventually

#: From the saving of a file to a task that runs it, in seconds beyond what the worker's own start took on this machine.
SOON = 2.0


def test_what_is_saved_runs_and_no_task_is_lost(sqlite_stage: Stage) -> None:
    shop = Shop(sqlite_stage)
    shop.write(0)
    started = time.monotonic()
    with shop.worker("--reload", PYTHONDONTWRITEBYTECODE="") as worker, Customers(sqlite_stage, 1) as customers:
        eventually(lambda: worker.logged("source_watched"), "the source is watched")
        assert worker.logged("source_watched")[0]["folders"] == sorted([str(shop.folder), str(ROOT / "tests")])
        sqlite_stage.traced("began", version=0)
        soon = time.monotonic() - started + SOON
        for version in range(1, 5):
            # As long as the one before, and saved in the same second: what was compiled must not be taken for it.
            shop.write(version)
            saved = time.monotonic()
            sqlite_stage.traced("began", version=version)
            assert time.monotonic() - saved < soon
        shop.save("def half_a_functi")
        eventually(lambda: worker.logged("reload_failed"), "the worker says what is wrong")
        assert "SyntaxError" in worker.logged("reload_failed")[0]["why"]
        began = len(sqlite_stage.traces("began", version=4))
        sqlite_stage.traced("began", began + 3, version=4)
        shop.write(5)
        sqlite_stage.traced("began", version=5)
        customers.leave()
        settled_bill(sqlite_stage, customers)
        assert worker.stop() == 0


def test_a_module_that_is_new_is_watched_too(sqlite_stage: Stage) -> None:
    shop = Shop(sqlite_stage)
    shop.write(0)
    with shop.worker("--reload").started() as worker:
        package = shop.folder / "stock"
        package.mkdir()
        (package / "__init__.py").write_text("raise ValueError('not yet')\n")
        shop.write(1, more="import stock\n")
        eventually(lambda: worker.logged("reload_failed"), "the new module fails")
        (package / "__init__.py").write_text("")
        eventually(lambda: worker.logged("reloaded"), "it is mended")
        assert sqlite_stage.client().send_task("buy", ["one"]).get(timeout=15) == 1
        assert worker.stop() == 0
