"""The files of deploy/ fit together, and fit the code: ports, names, options, and who waits for how long.

There is no YAML parser among our dependencies: `fields` reads the plain kind that these files are written in, and fails
for what it does not know. The proxies are in tests/e2e/test_proxies.py.
"""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from street_fast.limits import Limits
from street_fast.metric_names import METRICS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
YAML = sorted(path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*.yaml"))
DRAIN_S = 30

_LINE = re.compile(r"(?P<indent> *)(?P<items>(?:- +)*)(?:(?P<key>[\w./<-]+):(?: +|$))?(?P<value>.*)")


def fields(text: str) -> dict[str, str]:
    """The scalars of a YAML file by their path, ``spec.ports.0.name``; a second document begins again with ``1:``."""
    found: dict[str, str] = {}
    stack: list[tuple[int, str]] = []  # where each name of the path stands
    counts: dict[str, int] = {}
    document = folded = ""
    for line in text.split("\n"):
        assert "\t" not in line
        if line == "---":
            document, stack = f"{int(document.rstrip(':') or 0) + 1}:", []
            continue
        line = re.sub(r"(^|\s+)#.*", "", line)
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        assert match is not None, line
        indent = len(match["indent"])
        if folded and indent > stack[-1][0]:
            found[folded] = f"{found[folded]} {line.strip()}".strip()
            continue
        folded = ""
        assert indent % 2 == 0, line
        while stack and stack[-1][0] >= indent:
            stack.pop()
        for _ in range(match["items"].count("-")):
            above = document + ".".join(name for _, name in stack)
            counts[above] = counts.get(above, -1) + 1
            stack.append((indent, str(counts[above])))
            indent += 2
        if match["key"] is not None:
            stack.append((indent, match["key"]))
        value = match["value"]
        if value and not value.startswith("&"):
            path = document + ".".join(name for _, name in stack)
            assert path not in found, f"twice: {path}"
            found[path] = "" if value in (">-", "|") else value.strip("\"'")
            folded = path if value in (">-", "|") else ""
    return found


def read(name: str) -> dict[str, str]:
    return fields((DEPLOY / name).read_text(encoding="utf-8"))


def test_the_reader_reads():
    text = (
        'a:\n  b: "1"  # why\n  c:\n    - d: 2\n      e: 3\n    - f\n  g: >-\n    h\n    i: 4\n  j: [k, l]\n---\na: 5\n'
    )
    assert fields(text) == {
        "a.b": "1",
        "a.c.0.d": "2",
        "a.c.0.e": "3",
        "a.c.1": "f",
        "a.g": "h i: 4",
        "a.j": "[k, l]",
        "1:a": "5",
    }


@pytest.mark.parametrize("name", YAML)
def test_every_file_is_plain_yaml(name: str) -> None:
    assert len(read(name)) >= 5


@pytest.mark.parametrize("name", [name for name in YAML if name.startswith("kubernetes/")])
def test_every_object_of_kubernetes_says_what_it_is(name: str) -> None:
    told = read(name)
    for document in {path.partition(":")[0] if ":" in path else "" for path in told}:
        prefix = f"{document}:" if document else ""
        assert re.fullmatch(r"v1|[a-z]+/v\d", told[f"{prefix}apiVersion"])
        assert told[f"{prefix}metadata.name"].startswith("street-fast")


def test_a_pod_has_the_time_to_drain():
    told = read("kubernetes/deployment.yaml")
    pod = "spec.template.spec"
    container = f"{pod}.containers.0"
    names = {told[path]: path.removesuffix(".name") for path in told if re.search(r"env\.\d+\.name$", path)}
    drain_s = int(told[f"{names['STREET_FAST_DRAIN_TIMEOUT']}.value"])
    sleep = told[f"{container}.lifecycle.preStop.exec.command"]
    sleep_s = int(re.fullmatch(r'\["sleep", "(\d+)"\]', sleep)[1])  # type: ignore[index]
    assert drain_s == DRAIN_S == Limits().shutdown_timeout_s
    assert int(told[f"{pod}.terminationGracePeriodSeconds"]) >= sleep_s + drain_s + 10
    # It is out of the Service before it drains.
    period_s, failures = (
        int(told[f"{container}.readinessProbe.{name}"]) for name in ("periodSeconds", "failureThreshold")
    )
    assert sleep_s > period_s * failures


def test_the_probes_ask_what_they_are_for():
    told = read("kubernetes/deployment.yaml")
    container = "spec.template.spec.containers.0"
    ports = {told[f"{container}.ports.{n}.name"]: told[f"{container}.ports.{n}.containerPort"] for n in (0, 1)}
    assert ports == {"clients": "3000", "operations": "9000"}
    for probe, path in (("liveness", "/healthz"), ("readiness", "/readyz"), ("startup", "/healthz")):
        assert told[f"{container}.{probe}Probe.httpGet.path"] == path
        assert told[f"{container}.{probe}Probe.httpGet.port"] == "operations"


def test_all_objects_mean_the_same_pods():
    label = read("kubernetes/deployment.yaml")["spec.template.metadata.labels.app"]
    services = read("kubernetes/service.yaml")
    assert services["spec.selector.app"] == services["1:spec.selector.app"] == label
    assert read("kubernetes/disruption.yaml")["spec.selector.matchLabels.app"] == label
    scaled = read("kubernetes/autoscaling.yaml")
    assert scaled["spec.scaleTargetRef.name"] == read("kubernetes/deployment.yaml")["metadata.name"]
    assert int(scaled["spec.minReplicas"]) == int(read("kubernetes/deployment.yaml")["spec.replicas"])


def test_compose_waits_for_the_drain():
    told = read("compose.yaml")
    assert int(told["x-server.environment.STREET_FAST_DRAIN_TIMEOUT"]) == DRAIN_S
    assert int(told["x-server.stop_grace_period"].removesuffix("s")) > DRAIN_S + 10
    assert told["services.one.<<"] == told["services.two.<<"] == "*server"
    assert (DEPLOY.parent / "deploy" / told["x-server.build.dockerfile"].removeprefix("deploy/")).exists()
    assert "one:9000" in read("prometheus.yaml")["scrape_configs.0.static_configs.0.targets"]


def test_systemd_waits_for_the_drain():
    unit = configparser.ConfigParser(interpolation=None)
    unit.read(DEPLOY / "street-fast.service")
    service = unit["Service"]
    match = re.search(r"--drain-timeout (\d+)", service["ExecStart"])
    assert match is not None
    assert int(match[1]) == DRAIN_S
    assert int(service["TimeoutStopSec"]) > DRAIN_S + 10
    assert service["KillMode"] == "mixed"


def test_the_options_are_those_of_the_command(capsys):
    from street_fast.cli import main

    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    for path in (p for p in DEPLOY.rglob("*") if p.is_file()):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"\bSTREET_FAST_([A-Z_]+)\b", text):
            if name != "REQUIRE_EXTENSIONS":
                assert f"--{name.lower().replace('_', '-')}" in options, f"{path.name}: {name}"
        for line in re.findall(r"street-fast serve (.*)", text):
            assert set(re.findall(r"--[a-z-]+", line)) <= options, f"{path.name}: {line}"


def test_the_alerts_ask_for_metrics_that_there_are():
    names = {metric.name for metric in METRICS} | {"up"}
    told = read("alerts.yaml")
    expressions = [value for path, value in told.items() if path.endswith(".expr")]
    assert len(expressions) >= 10
    for expression in expressions:
        asked = re.findall(r"\b(?:street_fast|process|python)_\w+", re.sub(r'"[^"]*"', "", expression))
        assert asked or "up{" in expression
        assert set(asked) <= names, expression
    rules = [path.removesuffix(".alert") for path in told if path.endswith(".alert")]
    for rule in rules:
        assert told[f"{rule}.labels.severity"] in {"page", "ticket"}
        assert told[f"{rule}.annotations.summary"].endswith(".") or "?" in told[f"{rule}.annotations.summary"]
