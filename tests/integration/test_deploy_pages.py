"""The pages about containers and Kubernetes: what they have a person type fits the files, and works where it can be had.

docs/deployment/systemd.md is typed as a whole in ``test_deploy_systemd``.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from taskq.config import load
from tests.container import contained, execute, stop
from tests.integration.test_deploy_files import ENDING
from tests.pages import Page
from tests.redis_server import Redis
from tests.servers import RabbitMQ, free_port
from tests.support import ROOT, Worker, eventually

pytestmark = pytest.mark.namespaces

CONTAINER, KUBERNETES = Page("deployment/container.md"), Page("deployment/kubernetes.md")
DEPLOY = ROOT / "deploy"
SHOP = DEPLOY / "shop"
TASKQ = [sys.executable, "-m", "taskq"]


def the_command(page: Page, start: str) -> list[str]:
    """The words of the one command that begins like this."""
    [found] = [command for command in page.commands if command.startswith(start)]
    return shlex.split(found)


def values(command: list[str], option: str) -> list[str]:
    """What is given for an option."""
    return [value for name, value in pairwise(command) if name == option]


def in_the_container(page: Page) -> list[list[str]]:
    """What is typed to be run inside, from ``taskq`` on."""
    return [words[words.index("taskq") :] for words in map(shlex.split, page.commands) if "exec" in words]


@pytest.mark.parametrize("page", [CONTAINER, KUBERNETES], ids=["container", "kubernetes"])
def test_what_the_page_names_is_there(page: Page) -> None:
    for path in re.findall(r"\bdeploy/[\w./-]*\w", page.text):
        # The file of passwords is a person's own.
        assert path == "deploy/.env" or (ROOT / path).exists(), path
    for name in re.findall(r"`(\w+\.(?:yaml|env))`", page.text):
        assert any((folder / name).exists() for folder in (DEPLOY, DEPLOY / "kubernetes")), name


def test_the_image_is_built_of_what_is_there() -> None:
    build = the_command(CONTAINER, "docker build")
    contexts = {
        "": ROOT,
        **{name: ROOT / path for name, path in (value.split("=") for value in values(build, "--build-context"))},
    }
    [file] = values(build, "--file")
    ignored = (ROOT / f"{file}.dockerignore").read_text().splitlines()
    for source, sources in re.findall(r"^COPY (?:--from=(\w+) )?(.*) \S+$", (ROOT / file).read_text(), re.MULTILINE):
        for path in sources.split() if source != "build" else ():
            assert (contexts[source] / path).exists(), path
            assert source or f"!{path}" in ignored, f"{path} is kept out by {file}.dockerignore"
    composed = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["worker"]["build"]
    assert (DEPLOY / composed["context"]).resolve() == ROOT
    assert {name: DEPLOY / path for name, path in composed["additional_contexts"].items()} == {
        "application": contexts["application"]
    }


def test_the_worker_by_hand_is_understood_and_has_time_to_end() -> None:
    run = the_command(CONTAINER, "docker run --detach")
    settings = load({}, environment=dict(value.split("=", 1) for value in values(run, "--env")))
    assert settings.sources["concurrency"] == "environment"
    assert settings.grace + ENDING < float(values(run, "--stop-timeout")[0])
    composed = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["worker"]
    assert {"--read-only", "--detach"} <= set(run)
    assert composed["read_only"]
    assert values(run, "--cap-drop") == composed["cap_drop"]
    assert values(run, "--memory") == [composed["mem_limit"]]


def test_the_composed_worker_is_healthy_and_does_what_is_typed(rabbitmq: RabbitMQ, redis: Redis, tmp_path: Path) -> None:
    composed = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["worker"]
    port = str(free_port())
    # The servers are the tests' own; everything else is as it is written.
    servers = {"TASKQ_BROKER": rabbitmq.url, "TASKQ_BACKEND": redis.url, "TASKQ_HTTP": f"127.0.0.1:{port}"}
    place = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path), "TASKQ_LOG_FORMAT": "json"}
    environment = {**composed["environment"], **servers, **place}
    command = contained([*TASKQ, "worker"], environment, [tmp_path], folder=SHOP)
    with Worker(command, {"PATH": os.environ["PATH"]}, tmp_path / "log") as worker:
        worker.started()
        _, program, *arguments = [word.replace("9808", port) for word in composed["healthcheck"]["test"]]
        assert program == "python"
        assert eventually(lambda: execute(worker, [sys.executable, *arguments], environment, SHOP) == "", "it is healthy")
        said = {tuple(words): execute(worker, [*TASKQ, *words[1:]], environment, SHOP) for words in in_the_container(CONTAINER)}
        assert in_the_container(KUBERNETES) == [["taskq", "send", "shop.add", "--args", "[1, 2]", "--wait"]]
        assert said[*in_the_container(KUBERNETES)[0]].splitlines()[-1] == "3"
        assert "mail" in said["taskq", "queues"]
        assert worker.logged("no_obituaries") == []
        assert stop(worker) == 0
