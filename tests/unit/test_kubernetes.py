"""The manifests: they are what Kubernetes takes, ask for nothing they need not have, and agree with the settings and the image."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from itertools import filterfalse
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cluster.cli.dashboard import application
from cluster.coordinator import deletion_cost, http
from cluster.errors import ExitCode
from cluster.settings import SECRETS, Settings, load_settings

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "k8s"
CONTAINERFILE = (ROOT / "deploy" / "Containerfile").read_text(encoding="utf-8")
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
COMPONENTS = [
    "dashboard", "queue", "hpa", "keda", "deletion-cost", "podmonitor", "prometheus-rule", "grafana", "cloudnative-pg",
]  # fmt: skip
TOGETHER = [name for name in COMPONENTS if name != "hpa"]  # one autoscaler for a Deployment
VERSIONS = [
    "1.30",
    "1.33",
    "1.37",
]  # 1.30 is the first with matchLabelKeys, podFailurePolicy and the rest in beta at least
CUSTOM = ("keda.sh/", "monitoring.coreos.com/", "postgresql.cnpg.io/")
# What libpq and this project read in a container, besides the settings.
OTHER_VARIABLES = {"PGPASSWORD", "PGOPTIONS", "POD_NAME", "POD_NAMESPACE"}
NAME = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"

Manifest = dict[str, Any]  # Any: parsed YAML

pytestmark = pytest.mark.needs("kubectl")


@cache
def rendered(variant: str) -> tuple[Manifest, ...]:
    """The objects of `overlays/NAME`, or of the base with `components/NAME`, or with all components that go together."""
    folder, _, name = variant.partition("/")
    if folder == "overlays":
        return _built(MANIFESTS / variant)
    return _built_with(TOGETHER if name == "all" else [name])


def _built(folder: Path) -> tuple[Manifest, ...]:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()
    return tuple(yaml.safe_load_all(done.stdout))


def _built_with(components: list[str]) -> tuple[Manifest, ...]:
    """An overlay as a user writes it."""
    folder = SCRATCH / "-".join(components)
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(
        json.dumps(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "namespace": "shop",
                "resources": [os.path.relpath(MANIFESTS / "base", folder)],
                "components": [os.path.relpath(MANIFESTS / "components" / name, folder) for name in components],
            }
        ),
        encoding="utf-8",
    )
    return _built(folder)


SCRATCH = Path()


@pytest.fixture(scope="module", autouse=True)
def _scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    global SCRATCH
    SCRATCH = tmp_path_factory.mktemp("overlays").resolve()
    yield
    rendered.cache_clear()


VARIANTS = [*(f"overlays/{name}" for name in OVERLAYS), *(f"components/{name}" for name in [*COMPONENTS, "all"])]
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def objects(variant: str, kind: str) -> list[Manifest]:
    return [found for found in rendered(variant) if found["kind"] == kind]


def one(variant: str, kind: str) -> Manifest:
    (found,) = objects(variant, kind)
    return found


def nodes_of(variant: str) -> list[Manifest]:
    return [found for found in objects(variant, "Deployment") if _labels(found)[COMPONENT] == "node"]


def policy_of(variant: str) -> Manifest:
    """Of all pods."""
    (found,) = (found for found in objects(variant, "NetworkPolicy") if found["metadata"]["name"] == "jobcluster")
    return found


def is_dashboard(pod: Manifest) -> bool:
    return bool(pod["metadata"]["labels"][COMPONENT] == "dashboard")


def settings_map(variant: str) -> Manifest:
    """The ConfigMap of the nodes; others are dashboards."""
    (found,) = (found for found in objects(variant, "ConfigMap") if "grafana_dashboard" not in _labels(found))
    return found


def _labels(found: Manifest) -> dict[str, str]:
    labels: dict[str, str] = found["metadata"].get("labels", {})
    return labels


def pods(variant: str) -> list[Manifest]:
    """Templates of nodes, the dashboard and the migration: metadata and spec."""
    return [found["spec"]["template"] for kind in ("Deployment", "Job") for found in objects(variant, kind)]


def environment(variant: str, pod: Manifest) -> dict[str, str]:
    """As the container gets it: that of the settings, then its own. A value from a secret is a stand-in."""
    settings = settings_map(variant)
    (container,) = pod["spec"]["containers"]
    names = [source["configMapRef"]["name"] for source in container["envFrom"]]
    assert names == [settings["metadata"]["name"]]
    own = {entry["name"]: entry.get("value", "secret") for entry in container.get("env", [])}
    return {**settings["data"], **own}


def settings_of(variant: str, pod: Manifest, folder: Path) -> Settings:
    """Read as a node reads them, with the files of secrets in a folder."""
    secret = folder / "url"
    secret.write_text("postgresql://app:secret@postgres/app", encoding="utf-8")
    given = environment(variant, pod)
    return load_settings(
        {name: str(secret) if name.endswith("_FILE") and value else value for name, value in given.items()}
    )


def amount(quantity: str) -> float:
    """A quantity of Kubernetes, in CPUs or bytes; the schemas take any text."""
    match = re.fullmatch(r"(\d+)(m|Ki|Mi|Gi|)", quantity)
    assert match, f"no quantity: {quantity}"
    return int(match[1]) * {"m": 0.001, "": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[match[2]]


def selects(selector: Manifest, pod: Manifest) -> bool:
    assert selector["matchLabels"], "an empty selector is every pod of the namespace"
    labels: dict[str, str] = pod["metadata"]["labels"]
    return bool(selector["matchLabels"].items() <= labels.items())


# --- what Kubernetes takes ---


def test_every_overlay_and_component_is_tested() -> None:
    assert OVERLAYS == ["production", "small"]
    assert sorted(COMPONENTS) == sorted(path.name for path in (MANIFESTS / "components").iterdir())


@every_variant
@pytest.mark.parametrize("version", VERSIONS)
def test_each_object_fits_the_schema_of_kubernetes(variant: str, version: str) -> None:
    own = [found for found in rendered(variant) if not found["apiVersion"].startswith(CUSTOM)]
    assert len(own) >= 7
    for found in own:
        kubernetes_validate.validate(found, version, strict=True)


@every_variant
def test_each_custom_object_fits_the_schema_of_its_operator(variant: str) -> None:
    custom = [found for found in rendered(variant) if found["apiVersion"].startswith(CUSTOM)]
    folder = os.environ.get("CRD_SCHEMAS")
    if not folder:
        pytest.skip("needs the schemas of custom resources: CRD_SCHEMAS")
    for found in custom:
        group, version = found["apiVersion"].split("/")
        path = Path(folder, f"{group}_{found['kind'].lower()}_{version}.json")
        schema = json.loads(path.read_text(encoding="utf-8"))
        schema["properties"] |= {"metadata": {"type": "object"}}
        jsonschema.Draft202012Validator(_closed(schema)).validate(found)


def _closed(schema: Any) -> Any:  # Any: JSON
    """The schema, refusing keys that it does not name: the API server drops them without a word."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(part) for name, part in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict) and not is_open:
        closed["additionalProperties"] = False
    return closed


@every_variant
def test_objects_have_the_namespace_of_the_overlay(variant: str) -> None:
    namespace = one(variant, "Namespace")["metadata"]
    assert {found["metadata"].get("namespace") for found in rendered(variant) if found["kind"] != "Namespace"} == {
        namespace["name"]
    }
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@every_variant
def test_selectors_find_their_own_pods_only(variant: str) -> None:
    nodes = nodes_of(variant)
    templates = [node["spec"]["template"] for node in nodes]
    assert all(template["metadata"]["labels"][COMPONENT] == "node" for template in templates)
    for node in nodes:
        chosen = [template for template in pods(variant) if selects(node["spec"]["selector"], template)]
        assert chosen == [node["spec"]["template"]]
        for constraint in node["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert constraint["labelSelector"] == node["spec"]["selector"]
    for template in templates:
        budgets = objects(variant, "PodDisruptionBudget")
        assert len([budget for budget in budgets if selects(budget["spec"]["selector"], template)]) == 1
    policy = policy_of(variant)["spec"]
    assert all(selects(policy["podSelector"], template) for template in pods(variant))
    for monitor in objects(variant, "PodMonitor"):
        watched = [template for template in pods(variant) if selects(monitor["spec"]["selector"], template)]
        assert watched == templates


@every_variant
def test_names_refer_to_what_there_is(variant: str) -> None:
    """Service account, settings, secret: `environment` compares the name of the settings."""
    secret = "jobcluster-postgres-app" if objects(variant, "Pooler") else "jobcluster-database"
    for pod in pods(variant):
        assert pod["spec"]["serviceAccountName"] == one(variant, "ServiceAccount")["metadata"]["name"]
        assert environment(variant, pod)
        (volume,) = (volume for volume in pod["spec"]["volumes"] if "secret" in volume)
        assert volume["secret"]["secretName"] == ("jobcluster-dashboard" if is_dashboard(pod) else secret)
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]} == volumes
    for autoscaler in objects(variant, "HorizontalPodAutoscaler"):
        target = autoscaler["spec"]["scaleTargetRef"]
        (node,) = (node for node in objects(variant, target["kind"]) if node["metadata"]["name"] == target["name"])
        assert "replicas" not in node["spec"]
    for autoscaler in objects(variant, "ScaledObject"):
        name = autoscaler["spec"]["scaleTargetRef"]["name"]
        (node,) = (node for node in nodes_of(variant) if node["metadata"]["name"] == name)
        assert "replicas" not in node["spec"]
        (trigger,) = autoscaler["spec"]["triggers"]
        assert trigger["authenticationRef"]["name"] == one(variant, "TriggerAuthentication")["metadata"]["name"]
    for binding in objects(variant, "RoleBinding"):
        assert binding["roleRef"]["name"] == one(variant, "Role")["metadata"]["name"]
        assert [subject["name"] for subject in binding["subjects"]] == [
            one(variant, "ServiceAccount")["metadata"]["name"]
        ]
    for pooler in objects(variant, "Pooler"):
        assert pooler["spec"]["cluster"]["name"] == one(variant, "Cluster")["metadata"]["name"]


# --- what pods may do ---


@every_variant
def test_pods_keep_to_the_restricted_profile(variant: str) -> None:
    """Each control of the restricted Pod Security Standard, and the baseline's below it."""
    for pod in pods(variant):
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & spec.keys()
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"sysctls", "seLinuxOptions", "appArmorProfile", "windowsOptions"} & spec["securityContext"].keys()
        allowed = {"configMap", "downwardAPI", "emptyDir", "projected", "secret"}
        assert all(volume.keys() - {"name"} <= allowed for volume in spec["volumes"])
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }
            assert all("hostPort" not in port for port in container.get("ports", []))


@every_variant
def test_pods_have_no_token_and_no_variables_of_services(variant: str) -> None:
    assert one(variant, "ServiceAccount")["automountServiceAccountToken"] is False
    for pod in pods(variant):
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["enableServiceLinks"] is False
        if not objects(variant, "Role") or pod["metadata"]["labels"][COMPONENT] != "node":
            assert not [volume for volume in pod["spec"]["volumes"] if "projected" in volume]


@pytest.mark.parametrize("variant", ["components/deletion-cost", "components/all"])
def test_a_node_that_tells_its_deletion_cost_has_what_that_takes(variant: str) -> None:
    assert one(variant, "Role")["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}]
    for node in nodes_of(variant):
        pod = node["spec"]["template"]
        (container,) = pod["spec"]["containers"]
        paths = {
            entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"]
            for entry in container["env"]
            if "fieldRef" in entry.get("valueFrom", {})
        }
        assert paths == {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace"}
        (volume,) = (volume for volume in pod["spec"]["volumes"] if "projected" in volume)
        (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == volume["name"])
        assert mount["mountPath"] == str(deletion_cost.ACCOUNT)
        token, certificate = volume["projected"]["sources"]
        assert token["serviceAccountToken"]["path"] == "token"
        assert [item["path"] for item in certificate["configMap"]["items"]] == ["ca.crt"]
    ports = [port["port"] for rule in policy_of(variant)["spec"]["egress"] for port in rule["ports"]]
    assert ports == [53, 53, 5432, 443, 6443]


@every_variant
def test_pods_have_places_to_write(variant: str) -> None:
    """The root is read-only: sockets and temporary files need /tmp, a node's shared memory /dev/shm."""
    for pod in pods(variant):
        empty = {volume["name"]: volume["emptyDir"] for volume in pod["spec"]["volumes"] if "emptyDir" in volume}
        mounts = {mount["mountPath"]: mount for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert "sizeLimit" in empty[mounts["/tmp"]["name"]]
        if pod["metadata"]["labels"][COMPONENT] == "node":
            shared = empty[mounts["/dev/shm"]["name"]]
            assert shared["medium"] == "Memory"
            assert "sizeLimit" in shared


@every_variant
def test_pods_have_requests_and_a_limit_of_memory(variant: str) -> None:
    for pod in pods(variant):
        resources = pod["spec"]["containers"][0]["resources"]
        assert resources["requests"].keys() == {"cpu", "memory"}
        assert "memory" in resources["limits"]
        for name, limit in resources["limits"].items():
            assert 0 < amount(resources["requests"][name]) <= amount(limit)
    for node in nodes_of(variant):
        # The number of worker processes comes from it; without, it would be the machine's CPUs.
        assert int(node["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]) >= 1


# --- what the code says ---


@every_variant
def test_every_variable_is_a_setting(variant: str) -> None:
    names = {f"CLUSTER_{name.upper()}" for name in Settings.model_fields}
    names |= {f"CLUSTER_{name.upper()}_FILE" for name in SECRETS} | OTHER_VARIABLES
    for pod in pods(variant):
        assert environment(variant, pod).keys() <= names


@every_variant
def test_a_node_can_read_its_settings_and_has_its_secret_in_a_file(variant: str, tmp_path: Path) -> None:
    for pod in filterfalse(is_dashboard, pods(variant)):
        settings = settings_of(variant, pod, tmp_path)
        assert settings.database_configured
        assert settings.strangers == ()
        given = environment(variant, pod)
        mount = next(mount for mount in pod["spec"]["containers"][0]["volumeMounts"] if mount["name"] == "database")
        files = {value for name, value in given.items() if name.endswith("_FILE") and value}
        assert files == {f"{mount['mountPath']}/{'uri' if objects(variant, 'Pooler') else 'url'}"}
        assert "subPath" not in mount


@every_variant
def test_the_grace_period_is_longer_than_the_drain(variant: str, tmp_path: Path) -> None:
    for node in nodes_of(variant):
        pod = node["spec"]["template"]
        drain = settings_of(variant, pod, tmp_path).shutdown_timeout
        assert timedelta(seconds=pod["spec"]["terminationGracePeriodSeconds"]) >= drain + timedelta(seconds=10)


@every_variant
def test_ports_are_that_of_the_settings(variant: str, tmp_path: Path) -> None:
    default = Settings.model_fields["http_port"].default
    dashboard = Settings.model_fields["dashboard_port"].default
    assert f"\nEXPOSE {default} {dashboard}\n" in CONTAINERFILE
    (ingress,) = policy_of(variant)["spec"]["ingress"]
    names = [port["port"] for port in ingress["ports"]]
    for node in nodes_of(variant):
        pod = node["spec"]["template"]
        assert settings_of(variant, pod, tmp_path).http_port == default
        (port,) = pod["spec"]["containers"][0]["ports"]
        assert port["containerPort"] == default
        assert names == [port["name"]]
        for monitor in objects(variant, "PodMonitor"):
            assert [(end["port"], end["path"]) for end in monitor["spec"]["podMetricsEndpoints"]] == [
                (port["name"], "/metrics")
            ]


@every_variant
def test_probes_ask_for_paths_that_the_node_answers(variant: str) -> None:
    answered = set(re.findall(r'"(/\w+)"', Path(http.__file__).read_text(encoding="utf-8")))
    assert answered >= {"/livez", "/readyz", "/metrics"}
    for node in nodes_of(variant):
        (container,) = node["spec"]["template"]["spec"]["containers"]
        probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
        assert probes == {
            "startup": {"path": "/livez", "port": "metrics"},
            "liveness": {"path": "/livez", "port": "metrics"},
            "readiness": {"path": "/readyz", "port": "metrics"},
        }


@every_variant
def test_the_migration_is_not_repeated_where_that_helps_nobody(variant: str) -> None:
    job = one(variant, "Job")["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    codes = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    (container,) = job["template"]["spec"]["containers"]
    assert codes == [
        {
            "containerName": container["name"],
            "operator": "In",
            "values": [ExitCode.USAGE, ExitCode.JOBS_NOT_IMPORTABLE],
        }
    ]


@every_variant
def test_containers_run_commands_that_there_are(variant: str) -> None:
    from cluster.cli.app import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    for pod in pods(variant):
        (container,) = pod["spec"]["containers"]
        assert "command" not in container  # the image's entry point
        assert container["args"] in (["run"], ["migrate"], ["dashboard"])
        assert set(container["args"]) <= commands


def test_the_nodes_of_a_queue_serve_it_alone(tmp_path: Path) -> None:
    queues = {
        node["metadata"]["name"]: settings_of("components/queue", node["spec"]["template"], tmp_path).queues
        for node in nodes_of("components/queue")
    }
    assert queues == {"jobcluster-node": ("*",), "jobcluster-node-mail": ("mail",)}


@pytest.mark.parametrize("variant", ["components/dashboard", "components/all"])
def test_the_dashboard_is_reached_by_its_ingress_alone_and_has_a_role_of_its_own(variant: str, tmp_path: Path) -> None:
    (deployment,) = (found for found in objects(variant, "Deployment") if found not in nodes_of(variant))
    pod = deployment["spec"]["template"]
    assert is_dashboard(pod)
    settings = settings_of(variant, pod, tmp_path)
    assert (settings.dashboard_auth, settings.dashboard_host) == ("basic", "0.0.0.0")
    application(settings)  # nothing is wrong with them
    (container,) = pod["spec"]["containers"]
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "dashboard")
    assert "subPath" not in mount
    given = environment(variant, pod)
    files = {name: value for name, value in given.items() if name.endswith("_FILE") and value}
    assert files == {
        f"CLUSTER_{name}_FILE": f"{mount['mountPath']}/{file}"
        for name, file in (("DATABASE_URL", "url"), ("DASHBOARD_PASSWORD", "password"), ("DASHBOARD_SECRET", "secret"))
    }
    (port,) = container["ports"]
    assert (port["name"], port["containerPort"]) == ("http", settings.dashboard_port)
    probes = {container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert probes == {"/livez"}
    service, ingress = one(variant, "Service"), one(variant, "Ingress")["spec"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    (path,) = ingress["rules"][0]["http"]["paths"]
    assert path["path"] == settings.dashboard_prefix
    backend = path["backend"]["service"]
    assert backend == {"name": service["metadata"]["name"], "port": {"name": service["spec"]["ports"][0]["name"]}}
    assert ingress["tls"][0]["hosts"] == [ingress["rules"][0]["host"]]
    (policy,) = (found["spec"] for found in objects(variant, "NetworkPolicy") if found != policy_of(variant))
    assert [template for template in pods(variant) if selects(policy["podSelector"], template)] == [pod]
    assert policy["policyTypes"] == ["Ingress"], "what may go out is the other policy's"
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": port["name"], "protocol": "TCP"}]
    assert rule["from"], "not everybody"


def test_the_image_is_what_the_pods_expect() -> None:
    (user, group) = re.findall(r"^USER (\d+):(\d+)$", CONTAINERFILE, re.MULTILINE)[0]
    for pod in pods("overlays/small"):
        context = pod["spec"]["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    assert CONTAINERFILE.endswith('ENTRYPOINT ["jobcluster"]\nCMD ["run"]\n')
    assert "\nARG BASE=docker.io/library/python:3.11-slim-bookworm\n" in CONTAINERFILE


def test_the_overlay_of_the_documentation_can_be_built(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    folder = tmp_path.resolve() / "shop"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(
        text.replace("../..", os.path.relpath(MANIFESTS, folder)), encoding="utf-8"
    )
    built = _built(folder)
    assert {found["kind"] for found in built} == {found["kind"] for found in rendered("components/all")}
    (settings,) = (
        found for found in built if found["kind"] == "ConfigMap" and "grafana_dashboard" not in _labels(found)
    )
    assert settings["data"] == settings_map("components/all")["data"] | {"CLUSTER_LOG_LEVEL": "warning"}
    images = [
        found["spec"]["template"]["spec"]["containers"][0]["image"]
        for found in built
        if found["kind"] in {"Deployment", "Job"}
    ]
    assert images == ["registry.example.org/shop-jobs:1"] * 4


def test_dashboards_and_rules_are_those_of_the_mixin() -> None:
    folder = ROOT / "grafana"
    dashboards = [
        found for found in objects("components/grafana", "ConfigMap") if "grafana_dashboard" in _labels(found)
    ]
    assert all(_labels(found)["grafana_dashboard"] == "1" for found in dashboards)
    texts = {name: text for found in dashboards for name, text in found["data"].items()}
    assert texts == {path.name: path.read_text(encoding="utf-8") for path in (folder / "dashboards").glob("*.json")}
    assert len(dashboards) == len(texts)
    # `kubectl apply` keeps all of an object in an annotation, of 256 KiB at most.
    assert max(len(json.dumps(found)) for found in dashboards) < 200_000
    rules = yaml.safe_load((folder / "prometheus" / "rules.yaml").read_text(encoding="utf-8"))
    assert one("components/prometheus-rule", "PrometheusRule")["spec"] == rules


def test_production_survives_a_machine() -> None:
    (node,) = nodes_of("overlays/production")
    assert node["spec"]["replicas"] == 3
    spread = {constraint["topologyKey"] for constraint in node["spec"]["template"]["spec"]["topologySpreadConstraints"]}
    assert spread == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert objects("overlays/production", "PodMonitor")
