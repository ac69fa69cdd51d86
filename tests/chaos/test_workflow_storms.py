"""Workflows, in short: each ends once, while children are killed, and on SQLite whole workers too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.workflows import Canvas, celerys, ours, staged, storm
from tests.support import Stage

RUNS = 15


@pytest.mark.timeout(150)
@pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")
@pytest.mark.parametrize(
    ("broker", "backend", "client", "whole"),
    [("sqlite", "sqlite", ours, True), ("rabbitmq", "redis", celerys, False), ("rabbitmq", "postgres", ours, False)],
)
def test_each_workflow_ends_once(
    broker: str, backend: str, client: Callable[[Stage], Canvas], whole: bool, tmp_path: Path
) -> None:
    with staged(broker, backend, tmp_path) as stage:
        canvas = client(stage)
        faults, figures = storm(stage, canvas, RUNS, 11, whole=whole)
        canvas.close()
    assert faults == []
    assert figures["children killed"] > 0
