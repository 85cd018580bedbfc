"""
What is in deploy/ passes the linters of its kinds, and agrees with the bridge and with itself.

Nothing is deployed: no image is built, and no unit or manifest is applied.
"""

from __future__ import annotations

import configparser
import http.server
import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mcpbridge import BridgeSettings, ServerSettings
from mcpbridge.admin.metric_families import FAMILIES
from mcpbridge.config.config_file import Notice
from mcpbridge.config.file import read_config
from tests.real.parts import ROOT, beside_python, command, need

DEPLOY = ROOT / "deploy"
SYSTEMD, CONTAINER = DEPLOY / "systemd", DEPLOY / "container"
KUBERNETES, OPTIONAL = DEPLOY / "kubernetes", DEPLOY / "kubernetes" / "optional"
PROMETHEUS, DASHBOARD = DEPLOY / "prometheus", DEPLOY / "grafana" / "mcpbridge.json"
#: The command of the unit.
INSTALLED = "/opt/mcpbridge/bin/mcpbridge"
#: What the teardown may take beyond the grace periods, with containers as backends.
TEARDOWN = 20
#: Seconds that a linter may take; nothing is proven by it.
PATIENCE = 120


def lint(*words: str | Path, cwd: Path = ROOT) -> str:
    """Run a linter, which must find nothing; return what it prints."""
    done = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    return printed


def read_yaml(path: Path) -> Any:
    """Return the only document of a file."""
    need(find_spec("yaml"), "PyYAML is not installed: run `make test`, or install '.[dev]'")
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def longest_stop() -> float:
    """How many seconds a stop takes at most, with the settings that servers have by default."""
    server = ServerSettings(command="unused")
    return BridgeSettings().drain_timeout + server.stop_grace + server.kill_grace + TEARDOWN


# systemd.


def unit(path: Path) -> configparser.RawConfigParser:
    """Read a unit; of a setting that is there several times, the last line."""
    parser = configparser.RawConfigParser(strict=False, comment_prefixes=("#", ";"))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Copy the units, with a command that is on this machine and with all drop-ins."""
    copied = tmp_path / "units"
    shutil.copytree(SYSTEMD, copied)
    shutil.move(copied / "confined.conf", copied / "mcpbridge.service.d")
    for path in copied.rglob("*"):
        if path.suffix in (".service", ".conf"):
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(INSTALLED, command("true")), encoding="utf-8")
    return copied


@pytest.mark.parametrize("drop_ins", [True, False], ids=["with-drop-ins", "alone"])
def test_systemd_accepts_the_units(units: Path, drop_ins: bool) -> None:
    if not drop_ins:
        shutil.rmtree(units / "mcpbridge.service.d")
    verify = (command("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no")
    # A setting that it does not know is a line of its own, and no error.
    assert lint(*verify, units / "mcpbridge.service", units / "mcpbridge.socket") == ""


def test_systemd_calls_the_exposure_of_the_unit_ok(units: Path) -> None:
    shutil.rmtree(units / "mcpbridge.service.d")
    security = (command("systemd-analyze"), "security", "--offline=yes", "--no-pager")
    assert "OK" in lint(*security, "--threshold=45", units / "mcpbridge.service")


def test_systemd_accepts_the_user() -> None:
    made = SYSTEMD / "mcpbridge.sysusers.conf"
    lint(command("systemd-sysusers"), "--dry-run", made)
    service = unit(SYSTEMD / "mcpbridge.service")["Service"]
    [line] = [x for x in made.read_text("utf-8").splitlines() if x.startswith("u ")]
    assert line.split()[1] == service["User"]
    assert line.endswith(f"/var/lib/{service['StateDirectory']}")


def test_the_socket_has_the_name_that_the_drop_in_asks_for() -> None:
    name = unit(SYSTEMD / "mcpbridge.socket")["Socket"]["FileDescriptorName"]
    start = unit(SYSTEMD / "mcpbridge.service.d" / "socket.conf")["Service"]["ExecStart"]
    alone = unit(SYSTEMD / "mcpbridge.service")["Service"]["ExecStart"]
    assert start == f"{alone} --listen systemd:domain=INET:name={name}"


# How long a stop may take.


def test_every_supervisor_waits_longer_than_a_stop_takes() -> None:
    service = unit(SYSTEMD / "mcpbridge.service")["Service"]
    assert float(service["TimeoutStopSec"]) > longest_stop()
    compose = read_yaml(CONTAINER / "compose.yaml")["services"]["mcpbridge"]
    assert float(compose["stop_grace_period"].removesuffix("s")) > longest_stop()
    pod = read_yaml(KUBERNETES / "deployment.yaml")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [_, seconds] = container["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] > float(seconds) + longest_stop()


# Configuration files.


def configurations() -> Iterator[tuple[str, str]]:
    """Yield the text of each example of a configuration, by its path."""
    for path in (SYSTEMD / "mcpbridge.json", CONTAINER / "config" / "mcpbridge.json"):
        yield str(path.relative_to(DEPLOY)), path.read_text(encoding="utf-8")
    path = KUBERNETES / "configmap.yaml"
    yield str(path.relative_to(DEPLOY)), read_yaml(path)["data"]["mcpbridge.json"]


def test_the_configurations_are_valid(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("an-example-and-no-secret")
    secret.chmod(0o600)
    environment = {"GITHUB_TOKEN": "an-example-and-no-secret", "POD_IP": "192.0.2.1"}
    for name, text in configurations():
        path = tmp_path / "mcpbridge.json"
        path.write_text(re.sub(r"/run/(secrets|credentials)/[\w./-]+", str(secret), text))
        notices: list[Notice] = []
        settings = read_config(
            str(path), strict=True, environment=environment, notify=notices.append
        )
        assert len(settings.servers) == 3, name
        assert settings.auth is not None, name
        assert notices == [], name


# Containers.


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.node-uv"])
def test_hadolint_accepts_the_image(name: str) -> None:
    assert lint(beside_python("hadolint"), "--failure-threshold=style", CONTAINER / name) == ""


def test_the_images_are_of_one_debian() -> None:
    text = "".join(path.read_text("utf-8") for path in CONTAINER.glob("Dockerfile*"))
    tags = re.findall(r"^ARG (?:PYTHON|NODE)=(\S+)$", text, re.M)
    assert len(tags) == 2
    assert len({re.sub(r"[\d.]+|slim|-", "", tag) for tag in tags}) == 1


def test_the_compose_file_has_its_schema() -> None:
    check = (beside_python("check-jsonschema"), "--builtin-schema", "vendor.compose-spec")
    lint(*check, CONTAINER / "compose.yaml")


class Livez(http.server.BaseHTTPRequestHandler):
    """Answers `/livez` with the status that its server has."""

    def do_GET(self) -> None:
        """Answer with nothing but a status."""
        status = self.server.status if self.path == "/livez" else 404  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_health_check_of_the_image(status: int | None, healthy: bool) -> None:
    [line] = re.findall(r"^ +CMD (\[.*\])$", (CONTAINER / "Dockerfile").read_text("utf-8"), re.M)
    [program, *words] = json.loads(line)
    assert program == "python"
    server = http.server.HTTPServer(("127.0.0.1", 0), Livez)
    server.status = status  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    local = [each.replace("8808", str(server.server_port)) for each in words]
    assert local != words
    thread.start()
    if status is None:
        server.shutdown()
        server.server_close()
    try:
        # A proxy must not be asked for the container's own address.
        env = {"http_proxy": "http://127.0.0.1:9"}
        done = subprocess.run([sys.executable, *local], env=env, capture_output=True, timeout=60)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert (done.returncode == 0) is healthy, done.stderr


# Kubernetes.


def manifests() -> dict[str, Any]:
    """Return all manifests by their kind."""
    found = [read_yaml(path) for path in sorted(KUBERNETES.rglob("*.yaml"))]
    assert len({each["kind"] for each in found}) == len(found)
    return {each["kind"]: each for each in found}


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_kubernetes_accepts_the_manifests(version: str) -> None:
    # A PodMonitor is of the Prometheus Operator, and so in no schema of Kubernetes.
    paths = [x for x in sorted(KUBERNETES.rglob("*.yaml")) if x.name != "podmonitor.yaml"]
    validate = (beside_python("kubernetes-validate"), "--strict", "-k", version)
    printed = lint(*validate, *paths)
    assert printed.count(" passed ") == len(paths)


def test_the_manifests_agree_with_each_other() -> None:
    found = manifests()
    pod = found["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    spec = found["Deployment"]["spec"]
    monitor, policy = found["PodMonitor"]["spec"], found["NetworkPolicy"]["spec"]
    assert spec["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    for each in (found["PodDisruptionBudget"]["spec"], monitor):
        assert each["selector"]["matchLabels"] == labels
    assert policy["podSelector"]["matchLabels"] == labels
    [container] = pod["spec"]["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert [each["path"] for each in probes] == ["/livez", "/livez", "/readyz"]
    assert {each["port"] for each in probes} == {"http"}
    [endpoint] = monitor["podMetricsEndpoints"]
    [published] = found["Service"]["spec"]["ports"]
    allowed = {rule["ports"][0]["port"] for rule in policy["ingress"]}
    assert {endpoint["port"], published["targetPort"]} == allowed == set(ports)
    credentials = endpoint["authorization"]["credentials"]
    assert credentials["name"] == found["Secret"]["metadata"]["name"]
    assert credentials["key"] in found["Secret"]["stringData"]
    assert f"tcp:{ports['admin']}" in found["ConfigMap"]["data"]["mcpbridge.json"]
    volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
    assert {each["name"] for each in container["volumeMounts"]} == set(volumes)
    assert volumes["configuration"]["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    assert volumes["secrets"]["secret"]["secretName"] == found["Secret"]["metadata"]["name"]


def test_the_manifests_know_the_image() -> None:
    image = (CONTAINER / "Dockerfile").read_text(encoding="utf-8")
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    context, ports = pod["securityContext"], container["ports"]
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}\n" in image
    assert f"EXPOSE {ports[0]['containerPort']}\n" in image
    secrets = next(x for x in container["volumeMounts"] if x["name"] == "secrets")["mountPath"]
    files = re.findall(rf"{secrets}/([\w-]+)", manifests()["ConfigMap"]["data"]["mcpbridge.json"])
    assert set(files) == set(manifests()["Secret"]["stringData"])


# Prometheus and Grafana.

#: The labels of each metric, without those of the target.
METRICS = {each.name: set(each.labels) for each in FAMILIES}
HISTOGRAMS = {each.name for each in FAMILIES if each.kind == "histogram"}
#: Of prometheus_client's collector of the process, and of Prometheus itself.
OTHERS = {
    *("process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"),
    *("process_open_fds", "process_max_fds", "up"),
}
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"\b([a-zA-Z_]\w*)\s*(\{[^}]*\}|\()?")
_OPERATORS = {"and", "or", "unless", "bool", "offset"}


class Query(NamedTuple):
    """What an expression of PromQL names: metrics, and labels of them."""

    metrics: set[str]
    labels: set[str]


def read_query(text: str) -> Query:
    """Find the names in an expression; that it is one, promtool says."""
    text = re.sub(r'"[^"]*"', '""', text)
    labels = {each.strip() for found in _GROUPING.findall(text) for each in found.split(",")}
    text = re.sub(r"\[[^\]]*\]", "", _GROUPING.sub("", text))
    metrics = set()
    for name, rest in _SELECTOR.findall(text):
        if rest != "(" and name not in _OPERATORS:
            metrics.add(name)
            labels |= set(re.findall(r"(\w+)\s*[=!]", rest))
    return Query(metrics, labels - {""})


def labels_of(series: str) -> set[str]:
    """Return the labels that a series of ours may have; no other may be asked for."""
    if series in OTHERS:
        return {"job", "instance"}
    base, _, part = series.rpartition("_")
    if base in HISTOGRAMS:
        assert part in ("bucket", "count", "sum"), f"{series} is no series of a histogram"
        return METRICS[base] | {"job", "instance"} | ({"le"} if part == "bucket" else set())
    assert series in METRICS, f"there is no metric {series}"
    assert series not in HISTOGRAMS, f"{series} is a histogram, which has no series of that name"
    return METRICS[series] | {"job", "instance"}


def check_queries(queries: Iterable[str]) -> set[str]:
    """Check that the metrics and labels of expressions are the bridge's; return the metrics."""
    named = set()
    for text in queries:
        query = read_query(text)
        assert query.metrics, text
        assert query.labels <= set().union(*map(labels_of, query.metrics)), text
        named |= query.metrics
    return named


def alert_rules() -> list[dict[str, Any]]:
    """Return all alerting rules."""
    groups = read_yaml(PROMETHEUS / "alerts.yml")["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def targets() -> list[dict[str, Any]]:
    """Return all queries of the dashboard's panels."""
    return [each for panel in dashboard()["panels"] for each in panel.get("targets", [])]


def test_promtool_accepts_and_tests_the_alerts() -> None:
    promtool = command("promtool")
    lint(promtool, "check", "rules", "alerts.yml", cwd=PROMETHEUS)
    lint(promtool, "test", "rules", "alerts_test.yml", cwd=PROMETHEUS)
    # Only the syntax, as the file of the token is not on this machine.
    lint(promtool, "check", "config", "--syntax-only", "prometheus.yml", cwd=PROMETHEUS)


def test_every_alert_is_tested_to_fire_and_to_be_quiet() -> None:
    fires: dict[str, set[bool]] = {rule["alert"]: set() for rule in alert_rules()}
    for test in read_yaml(PROMETHEUS / "alerts_test.yml")["tests"]:
        for case in test["alert_rule_test"]:
            fires[case["alertname"]].add(bool(case["exp_alerts"]))
    assert fires == {name: {True, False} for name in fires}


def test_the_alerts_name_metrics_that_there_are() -> None:
    check_queries(rule["expr"] for rule in alert_rules())


def test_the_dashboard_has_every_metric_and_no_other() -> None:
    named = check_queries(each["expr"] for each in targets())
    check_queries(each["expr"] for each in dashboard()["annotations"]["list"])
    parts = {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "count", "sum")}
    shown = {re.sub(r"_(bucket|count|sum)$", "", each) if each in parts else each for each in named}
    assert set(METRICS) <= shown


def test_the_legends_and_variables_of_the_dashboard_name_labels_that_there_are() -> None:
    for each in targets():
        legend = set(re.findall(r"{{(\w+)}}", each["legendFormat"]))
        query = read_query(each["expr"])
        known = set().union(*map(labels_of, query.metrics))
        grouped = _GROUPING.findall(each["expr"])
        if grouped:
            known &= {label.strip() for found in grouped for label in found.split(",")}
        assert legend <= known, each
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            values = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            assert values
            check_queries([values[1]])
            assert values[2] in labels_of(*read_query(values[1]).metrics)


def test_promtool_accepts_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    intervals = {"$__rate_interval": "5m", "$__interval": "1m"}
    queries = [each["expr"] for each in [*targets(), *dashboard()["annotations"]["list"]]]
    for (name, value), i in itertools.product(intervals.items(), range(len(queries))):
        queries[i] = queries[i].replace(name, value)
    rules = [{"record": f"query:{i}", "expr": each} for i, each in enumerate(queries)]
    path = tmp_path / "dashboard.yml"
    # JSON is YAML.
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in lint(command("promtool"), "check", "rules", path)


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({each["id"] for each in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = set(itertools.product(columns, range(place["y"], place["y"] + place["h"])))
        assert max(columns) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"]


@pytest.mark.parametrize(
    ("query", "metrics", "labels"),
    [
        ("up", {"up"}, set()),
        ('a{b="c}d", e!~"f|"}', {"a"}, {"b", "e"}),
        ('sum by (a, le) (rate(b_c{d=~"$e"}[$__rate_interval]))', {"b_c"}, {"a", "le", "d"}),
        ("a / on (b) c > 0.95 or vector(0)", {"a", "c"}, {"b"}),
        ("a == 0 unless on (b) c == 1", {"a", "c"}, {"b"}),
    ],
)
def test_the_names_of_a_query_are_found(query: str, metrics: set[str], labels: set[str]) -> None:
    assert read_query(query) == (metrics, labels)


@pytest.mark.parametrize(
    "query",
    [
        "mcpbridge_session",
        "mcpbridge_backend_spawn_seconds",
        "mcpbridge_backend_spawn_seconds_total",
        'mcpbridge_sessions{method="x"}',
        "sum by (le) (mcpbridge_sessions)",
    ],
)
def test_a_name_that_is_no_metric_or_label_is_noticed(query: str) -> None:
    with pytest.raises(AssertionError):
        check_queries([query])
