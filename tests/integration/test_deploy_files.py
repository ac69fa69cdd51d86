"""What is in deploy/: valid by the schemas, and of one mind with itself, with the settings and with the worker."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import kombu
import kubernetes_validate
import pytest
import yaml

from taskq import TaskQ
from taskq.broker.amqp.topology import held_queue, lane
from taskq.config import load
from taskq.message import dead_letter_queue
from taskq.workers.health import Health
from taskq.workers.metrics import Metrics
from taskq.workers.scheduler import SEND_SECONDS
from taskq.workers.settle import LAST_SETTLING
from taskq.workers.supervisor import CHILD_EXIT_SECONDS
from taskq.workers.vitals import Vitals
from taskq.workers.watchdog import QUESTION_SECONDS
from tests.servers import RabbitMQ, free_port, running_node
from tests.support import ROOT, eventually

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
#: How long a worker may take to end beside its grace, and a scheduler to end.
ENDING = LAST_SETTLING + CHILD_EXIT_SECONDS + QUESTION_SECONDS + 3 * SEND_SECONDS
#: What the schemas of Kubernetes do not know: of each kind, what has to be said.
CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"): {"scaleTargetRef", "triggers"},
    ("keda.sh/v1alpha1", "TriggerAuthentication"): {"secretTargetRef"},
    ("rabbitmq.com/v1beta1", "RabbitmqCluster"): {"replicas", "persistence"},
}

Object = dict[str, Any]


def environment_file(path: Path) -> dict[str, str]:
    """The variables of a file of NAME=value lines."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def objects() -> list[Object]:
    """Every object of the Kubernetes folder that is written down; the rest, kustomize makes."""
    [kustomization] = documents("kustomization.yaml")
    return [value for name in kustomization["resources"] for value in documents(name)]


def documents(name: str) -> list[Object]:
    """The documents in a file."""
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


def named(kind: str, name: str) -> Object:
    """One object."""
    [found] = [value for value in objects() if value["kind"] == kind and value["metadata"]["name"] == name]
    return found


def compose() -> dict[str, Object]:
    """The services of the composition."""
    services: dict[str, Object] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return services


def unit(name: str) -> dict[str, list[str]]:
    """The directives of a unit; each may be there more than once."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "systemd" / name).read_text().splitlines():
        if (match := re.match(r"(\w+)=(.*)", line)) is not None:
            found.setdefault(match[1], []).append(match[2])
    return found


def environments() -> Iterator[tuple[str, dict[str, str]]]:
    """Wherever a worker is told its settings: where, and which."""
    yield "systemd", environment_file(DEPLOY / "systemd" / "shop.env")
    yield "compose", compose()["worker"]["environment"]
    settings = environment_file(KUBERNETES / "settings.env")
    for name in ("shop-worker", "shop-scheduler"):
        [container] = named("Deployment", name)["spec"]["template"]["spec"]["containers"]
        secrets = {"TASKQ_BROKER": "amqp://user:password@rabbitmq.shop.svc:5672/", "TASKQ_BACKEND": "redis://redis/0"}
        assert {variable["name"] for variable in container["env"]} == set(secrets)
        yield name, settings | secrets


@pytest.mark.parametrize(("place", "environment"), [*environments()], ids=[place for place, _ in environments()])
def test_every_variable_is_a_setting_that_is_understood(place: str, environment: dict[str, str]) -> None:
    settings = load({}, environment={name: str(value) for name, value in environment.items()})
    assert environment["TASKQ_APP"] == "shop"
    # Of the machine's processors, a container may have a part: how many children there are must be said.
    assert settings.sources["concurrency"] == "environment"


def seconds(text: str) -> int:
    """A duration as compose and systemd write it."""
    return int(text.removesuffix("s"))


def test_whoever_ends_a_worker_waits_longer_than_its_grace() -> None:
    given = {
        "systemd": seconds(unit("taskq-worker@.service")["TimeoutStopSec"][0]),
        "compose": seconds(compose()["worker"]["stop_grace_period"]),
        "shop-worker": named("Deployment", "shop-worker")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"],
    }
    for place, environment in environments():
        if place in given:
            grace = load({}, environment=environment).grace
            assert grace + ENDING < given[place], place
    scheduler = named("Deployment", "shop-scheduler")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert min(scheduler, seconds(unit("taskq-scheduler.service")["TimeoutStopSec"][0])) > 3 * SEND_SECONDS


def test_the_probes_ask_where_somebody_answers() -> None:
    [worker] = named("Deployment", "shop-worker")["spec"]["template"]["spec"]["containers"]
    [port] = worker["ports"]
    assert environment_file(KUBERNETES / "settings.env")["TASKQ_HTTP"] == f"0.0.0.0:{port['containerPort']}"
    vitals = Vitals(0.0)
    health = Health(vitals, Metrics(vitals, lambda: None).answer)
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        asked = worker[probe]["httpGet"]
        assert (asked["path"], asked["port"]) == (path, port["name"])
        assert health.answer(path).status != 404
    assert "preStop" not in (KUBERNETES / "worker.yaml").read_text().replace("No preStop", "")
    allowed = named("NetworkPolicy", "shop")["spec"]["ingress"][0]["ports"]
    assert allowed == [{"port": port["containerPort"]}]


@pytest.mark.parametrize("version", ["1.29", "1.33"])
def test_kubernetes_knows_what_is_said(version: str) -> None:
    for value in objects():
        key = value["apiVersion"], value["kind"]
        if key in CUSTOM:
            assert CUSTOM[key] <= value["spec"].keys(), key
        else:
            kubernetes_validate.validate(value, version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    worker = named("Deployment", "shop-worker")
    worker["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(worker, "1.33", strict=True)


def test_every_file_is_part_of_the_kustomization_and_every_reference_leads_somewhere() -> None:
    [kustomization] = documents("kustomization.yaml")
    files = {path.name for path in KUBERNETES.iterdir()} - {"kustomization.yaml"}
    [settings] = kustomization["configMapGenerator"]
    assert files == {*kustomization["resources"], *settings["envs"]}
    cluster = named("RabbitmqCluster", "rabbitmq")["metadata"]["name"]
    for name in ("shop-worker", "shop-scheduler"):
        deployment = named("Deployment", name)["spec"]
        [container] = deployment["template"]["spec"]["containers"]
        assert [source["configMapRef"]["name"] for source in container["envFrom"]] == [settings["name"]]
        assert container["env"][0]["valueFrom"]["secretKeyRef"]["name"] == f"{cluster}-default-user"
        assert container["image"] in {image["name"] for image in kustomization["images"]}
        selector = deployment["selector"]["matchLabels"]
        assert deployment["template"]["metadata"]["labels"] == selector
        budget = named("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"]
        policy = named("NetworkPolicy", "shop")["spec"]["podSelector"]["matchLabels"]
        assert budget.items() <= selector.items()
        assert policy.items() <= selector.items()
    scaled = named("ScaledObject", "shop-worker")["spec"]
    assert named("Deployment", scaled["scaleTargetRef"]["name"])["spec"].get("replicas") is None
    [trigger] = scaled["triggers"]
    authentication = named("TriggerAuthentication", trigger["authenticationRef"]["name"])
    assert {target["name"] for target in authentication["spec"]["secretTargetRef"]} == {f"{cluster}-default-user"}
    assert urllib.parse.urlsplit(trigger["metadata"]["host"]).hostname == f"{cluster}.{kustomization['namespace']}.svc"
    assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA reads text alone"


@pytest.mark.parametrize("name", ["shop-worker", "shop-scheduler"])
def test_pods_are_restricted_in_what_they_may_do(name: str) -> None:
    pod = named("Deployment", name)["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    # What has to be written lies in volumes that the image's user may write to.
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {"/var/lib/taskq", "/tmp"}
    assert {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume} == set(mounts.values())
    image = (DEPLOY / "Dockerfile").read_text()
    assert "XDG_STATE_HOME=/var/lib " in image
    assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}\n" in image
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]


def test_the_scaler_counts_what_waits_and_what_runs_and_no_dead_letters() -> None:
    [trigger] = named("ScaledObject", "shop-worker")["spec"]["triggers"]
    asked, port = trigger["metadata"], free_port()
    settings = (f"management.tcp.port = {port}", "management.tcp.ip = 127.0.0.1", "collect_statistics_interval = 500")
    plugins = {"RABBITMQ_ENABLED_PLUGINS": "rabbitmq_management"}
    with running_node(*settings, rabbit="{quorum_tick_interval, 500}", **plugins) as node:
        held = held_queue("default", "0123456789abcdef" * 2)
        counted = {"default": 5, lane("default"): 2, held: 1, "mail": 1, lane("mail"): 0}
        others = {dead_letter_queue("default"): 3, "default2": 4, "taskq.delay": 5}
        with kombu.Connection(node.url) as connection, connection.channel() as channel:
            for queue, count in (counted | others).items():
                channel.queue_declare(queue, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
                for _ in range(count):
                    channel.basic_publish(channel.prepare_message(b"x"), routing_key=queue)
            for queue in ("default", "default", held):
                eventually(partial(channel.basic_get, queue), "a worker holds it")

            # The question that KEDA asks, with the names that it gives these parameters.
            query = urllib.parse.urlencode(
                {
                    "page": 1,
                    "use_regex": "true",
                    "pagination": "false",
                    "name": asked["queueName"],
                    "page_size": asked["pageSize"],
                }
            )
            url = f"http://127.0.0.1:{port}/api/queues/{urllib.parse.quote(asked['vhostName'], safe='')}?{query}"

            def answered() -> dict[str, int]:
                request = urllib.request.Request(url, headers={"Authorization": "Basic Z3Vlc3Q6Z3Vlc3Q="})
                with urllib.request.urlopen(request, timeout=5) as answer:
                    return {queue["name"]: queue.get("messages", -1) for queue in json.load(answer)["items"]}

            eventually(lambda: answered() == counted, f"they are counted: {counted}")
    assert (asked["mode"], asked["operation"], asked["excludeUnacknowledged"]) == ("QueueLength", "sum", "false")


def test_the_operators_url_is_one_that_taskq_understands(rabbitmq: RabbitMQ, queue: str) -> None:
    """It ends with one slash, where ours have two."""
    assert rabbitmq.url.endswith("//")
    app = TaskQ("shop", broker=rabbitmq.url.removesuffix("/"), default_queue=queue)
    app.send_task("add", [1, 2])
    app.close()
    with kombu.Connection(rabbitmq.url) as connection, connection.channel() as channel:
        assert channel.queue_delete(queue) == 1
