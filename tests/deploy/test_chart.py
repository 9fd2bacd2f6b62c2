"""The chart, rendered and linted by Helm's own library and held against Kubernetes' schemas and the launcher."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from fuserec.serve.launcher import Address
from fuserec.serve.tritonserver import STOP_TIMEOUT_S

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "fuserec"
MINIMAL = {"models": {"claim": "models"}}
VALUES: dict[str, dict[str, Any]] = {
    "minimal": MINIMAL,
    **{path.stem: yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "helm" / "values").glob("*.yaml"))},
    "unusual": {
        **MINIMAL,
        "service": {"type": "LoadBalancer", "headless": False},
        "disruptionBudget": {"enabled": False},
        "autoscaling": {"enabled": True, "queueSeconds": None},
        "networkPolicy": {"enabled": True},
        "env": {"OMP_NUM_THREADS": "1"},
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "shop"},
        "affinity": {"nodeAffinity": {}},
    },
}
# Not of Kubernetes itself, so not in its schemas.
CUSTOM = {"ServiceMonitor"}

Manifest = dict[str, Any]
# Helm's library brings the run time of another language along: it stays out of the process of the tests.
HELM = """
import json, sys
import helm_python as helm
chart, values = sys.argv[1], json.load(sys.stdin)
try:
    with helm.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        made = loaded.render(values, name="shop", namespace="prod")
    print(json.dumps({"made": made, "lint": helm.lint(chart, values, strict=True)}))
except helm.HelmError as error:
    print(json.dumps({"refused": str(error)}))
"""


def helm(values: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-c", HELM, str(CHART)]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


Render = Callable[[str], list[Manifest]]


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, Any]]:
    return {name: helm(values) for name, values in VALUES.items()}


@pytest.fixture(scope="module")
def render(answers: dict[str, dict[str, Any]]) -> Render:
    def manifests(name: str) -> list[Manifest]:
        assert "made" in answers[name], answers[name]
        texts = [text for file, text in answers[name]["made"].items() if not file.endswith(".txt")]
        return [document for text in texts for document in yaml.safe_load_all(text) if document]

    return manifests


def only(manifests: list[Manifest], kind: str) -> Manifest:
    [found] = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def pod(manifests: list[Manifest]) -> Manifest:
    spec: Manifest = only(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("name", VALUES)
def test_helm_lints_it(name: str, answers: dict[str, dict[str, Any]]) -> None:
    report = answers[name]["lint"]
    assert report["total_charts_linted"] == 1
    assert not report["errors"]
    # Severity 1 is a wish for an icon.
    assert not [message for message in report["messages"] if message["severity"] > 1]


@pytest.mark.parametrize("version", ["1.33", "1.37"])
@pytest.mark.parametrize("name", VALUES)
def test_kubernetes_takes_it(name: str, version: str, render: Render) -> None:
    manifests = render(name)
    assert len(manifests) >= 2
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_schemas_of_kubernetes_refuse_what_is_wrong(render: Render) -> None:
    manifest = only(render("minimal"), "Deployment")
    manifest["spec"]["template"]["spec"]["containers"][0]["readOnly"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, "1.37", strict=True)


@pytest.mark.parametrize("name", VALUES)
def test_names_and_selectors_meet(name: str, render: Render) -> None:
    manifests = render(name)
    deployment = only(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    ports = {port["name"]: port["containerPort"] for port in pod(manifests)["containers"][0]["ports"]}
    services = [manifest for manifest in manifests if manifest["kind"] == "Service"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    for service in services:
        assert service["spec"]["selector"].items() <= labels
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    for manifest in manifests:
        spec = manifest["spec"]
        if manifest["kind"] == "HorizontalPodAutoscaler":
            assert spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
            assert "replicas" not in deployment["spec"], "every upgrade would undo what the autoscaler did"
        if manifest["kind"] == "PodDisruptionBudget":
            assert spec["selector"]["matchLabels"].items() <= labels
        if manifest["kind"] == "NetworkPolicy":
            assert spec["podSelector"]["matchLabels"].items() <= labels
            assert {port["port"] for rule in spec["ingress"] for port in rule["ports"]} <= set(ports)
        if manifest["kind"] == "ServiceMonitor":
            wanted = spec["selector"]["matchLabels"].items()
            assert len([service for service in services if wanted <= service["metadata"]["labels"].items()]) == 1


@pytest.mark.parametrize("name", VALUES)
def test_pod_is_restricted(name: str, render: Render) -> None:
    """What Kubernetes calls the restricted profile, and no root that can be written to."""
    spec = pod(render(name))
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/models"]["readOnly"]
    sizes = [volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"] if "emptyDir" in volume]
    assert len(sizes) == 2 and all(sizes)


def test_chart_image_and_launcher_agree(render: Render) -> None:
    dockerfile = (DEPLOY / "docker" / "Dockerfile").read_text()
    [container] = pod(render("minimal"))["containers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert 'ENTRYPOINT ["python3", "-m", "fuserec.cli", "serve", "/models"' in dockerfile
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == Address().ports
    # Wherever the image writes, the pod has a volume.
    written = re.findall(r"(?:HOME|_DIR)=(/\S+)", dockerfile)
    assert len(written) == 4
    assert all(path == "/tmp" or path.startswith("/tmp/") for path in written) and "/tmp" in mounts


@pytest.mark.parametrize("name", VALUES)
def test_a_pod_is_given_time_to_drain(name: str, render: Render) -> None:
    """The kernel does not end the launcher before the launcher ends the server."""
    spec = pod(render(name))
    [_, leave] = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert spec["terminationGracePeriodSeconds"] > float(leave) + STOP_TIMEOUT_S
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    assert float(compose["services"]["fuserec"]["stop_grace_period"].removesuffix("s")) > STOP_TIMEOUT_S


def test_autoscaler_reads_what_the_adapter_serves(render: Render) -> None:
    adapter = yaml.safe_load((DEPLOY / "prometheus" / "adapter.yaml").read_text())
    served = [rule["name"]["as"] for rule in adapter["rules"]["custom"]]
    queue, cpu = only(render("production"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert [queue["pods"]["metric"]["name"]] == served
    assert queue["pods"]["target"]["averageValue"] == "5m", "5 thousandths of a second"
    assert cpu["resource"]["name"] == "cpu"
    [alone] = only(render("unusual"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert alone["resource"]["name"] == "cpu"


def test_gpus_and_image_volumes(render: Render) -> None:
    spec = pod(render("gpu"))
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["containers"][0]["args"][2:] == ["--device", "cuda", "--set", "device_rows=device"]
    assert len(pod(render("production"))["containers"][0]["args"]) == 2, "without a GPU the command decides"
    [models] = [volume for volume in spec["volumes"] if volume["name"] == "models"]
    assert models["image"]["reference"] == VALUES["gpu"]["models"]["image"]


def test_policy_without_peers_lets_nobody_in(render: Render) -> None:
    policy = only(render("unusual"), "NetworkPolicy")["spec"]
    assert policy["ingress"] == [] and policy["policyTypes"] == ["Ingress", "Egress"]


def test_metrics_stay_inside() -> None:
    """A load balancer publishes the answers and not the metrics."""
    made = helm({**MINIMAL, "service": {"type": "LoadBalancer"}})["made"]
    service, *_ = yaml.safe_load_all(made["fuserec/templates/service.yaml"])
    assert {port["name"] for port in service["spec"]["ports"]} == {"http", "grpc"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "exactly one of models.claim and models.image"),
        ({"models": {"claim": "a", "image": "b"}}, "exactly one of models.claim and models.image"),
        ({**MINIMAL, "replica": 3}, "replica"),
        ({**MINIMAL, "image": {"digest": "sha256:1"}}, "digest"),
        ({**MINIMAL, "shutdown": {"drainSeconds": 5}}, "drainSeconds"),
        ({**MINIMAL, "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": None}}}, "requests"),
        ({**MINIMAL, "autoscaling": {"enabled": True, "min": 5, "max": 2}}, "autoscaling.min"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], said: str) -> None:
    assert said in helm(values).get("refused", "taken")
