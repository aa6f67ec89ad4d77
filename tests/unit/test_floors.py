"""The house: a module imports only what is on the floors below it, and third-party libraries only where they belong.

Read from the source with `ast`, so that imports inside functions count too; those under TYPE_CHECKING do not.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import street_fast

PACKAGE = Path(street_fast.__file__).parent

FLOORS: list[set[str]] = [
    {"errors", "limits", "memory_limit", "metric_names", "metrics", "process_stats", "seldom"},
    {"_frames", "_frames_py", "_wheel", "_wheel_py", "request", "handshake", "jwt_keys", "messages"},
    {"_connection", "_connection_py", "_core", "_intake", "_intake_py", "slow_consumers"},
    {
        "auth",
        "backplanes",
        "backplanes.following",
        "backplanes.memory",
        "backplanes.nats",
        "backplanes.nats_history",
        "backplanes.nats_link",
        "backplanes.nats_nodes",
        "backplanes.reading",
        "backplanes.reasons",
        "backplanes.records",
        "backplanes.redis",
        "backplanes.redis_histories",
        "backplanes.redis_interests",
        "backplanes.redis_links",
        "backplanes.redis_members",
        "backplanes.redis_scripts",
        "backplanes.redis_servers",
        "backplanes.roster",
        "backplanes.urls",
        "handler_types",
        "http1",
        "http_connection",
        "http_server",
        "jwks",
        "listening",
        "missed",
        "presence",
        "rates",
        "refusals",
        "runner",
        "sse",
        "stream_context",
        "street_socket",
    },
    {"hub", "server"},
    {
        "exchange",
        "exposition",
        "_publish",
        "_publish_py",
        "integrations",
        "integrations.aiohttp",
        "integrations.asgi",
        "integrations.handover",
        "integrations.uvicorn",
        "node_calls",
        "operations",
        "permissions",
        "publishing",
        "realtime",
        "realtime_http",
        "recovery",
        "server_api",
        "session",
        "sse_peer",
    },
    {
        "__main__",
        "application",
        "banner",
        "cli",
        "control",
        "demo",
        "guardian",
        "local_nats",
        "logs",
        "options",
        "serving",
        "supervisor",
        "worker",
    },
]
BESIDE = {  # may import anything, is imported by nobody
    "client",
    "client.alarms",
    "client.client",
    "client.connection",
    "client.feed",
    "client.handshake",
    "client.link",
    "client.messages",
    "client.pacing",
    "client.protocol",
    "client.requests",
    "client.subscription",
    "client.subscriptions",
    "testing",
}
SANS_IO_BESIDE = {
    "client.alarms",
    "client.feed",
    "client.handshake",
    "client.messages",
    "client.pacing",
    "client.protocol",
    "client.requests",
    "client.subscriptions",
}
"""Those of them that have no I/O."""
FLOOR_OF = {module: number for number, modules in enumerate(FLOORS) for module in modules}

SAME_FLOOR = {
    ("_frames_py", "_frames"),
    ("limits", "errors"),
    ("handshake", "request"),
    ("_connection", "slow_consumers"),
    ("_connection_py", "slow_consumers"),
    ("_core", "_connection"),
    ("_core", "_connection_py"),
    ("_core", "_intake"),
    ("_core", "_intake_py"),
    ("auth", "jwks"),
    ("backplanes.following", "backplanes"),
    ("backplanes.memory", "backplanes"),
    ("backplanes.nats", "backplanes"),
    ("backplanes.nats", "backplanes.following"),
    ("backplanes.nats", "backplanes.nats_history"),
    ("backplanes.nats", "backplanes.nats_link"),
    ("backplanes.nats", "backplanes.nats_nodes"),
    ("backplanes.nats", "backplanes.records"),
    ("backplanes.nats_history", "backplanes"),
    ("backplanes.nats_history", "backplanes.nats_link"),
    ("backplanes.nats_history", "backplanes.reading"),
    ("backplanes.nats_history", "backplanes.records"),
    ("backplanes.nats_link", "backplanes"),
    ("backplanes.nats_link", "backplanes.reasons"),
    ("backplanes.nats_nodes", "backplanes"),
    ("backplanes.nats_nodes", "backplanes.nats_history"),
    ("backplanes.nats_nodes", "backplanes.nats_link"),
    ("backplanes.nats_nodes", "backplanes.reading"),
    ("backplanes.nats_nodes", "backplanes.records"),
    ("backplanes.nats_nodes", "backplanes.roster"),
    ("backplanes.reading", "backplanes"),
    ("backplanes.records", "backplanes"),
    ("backplanes.redis", "backplanes"),
    ("backplanes.redis", "backplanes.following"),
    ("backplanes.redis", "backplanes.reading"),
    ("backplanes.redis", "backplanes.reasons"),
    ("backplanes.redis", "backplanes.records"),
    ("backplanes.redis", "backplanes.redis_histories"),
    ("backplanes.redis", "backplanes.redis_interests"),
    ("backplanes.redis", "backplanes.redis_links"),
    ("backplanes.redis", "backplanes.redis_members"),
    ("backplanes.redis", "backplanes.redis_scripts"),
    ("backplanes.redis", "backplanes.redis_servers"),
    ("backplanes.redis_histories", "backplanes"),
    ("backplanes.redis_histories", "backplanes.reading"),
    ("backplanes.redis_histories", "backplanes.reasons"),
    ("backplanes.redis_histories", "backplanes.records"),
    ("backplanes.redis_histories", "backplanes.redis_links"),
    ("backplanes.redis_histories", "backplanes.redis_scripts"),
    ("backplanes.redis_interests", "backplanes"),
    ("backplanes.redis_interests", "backplanes.redis_links"),
    ("backplanes.redis_interests", "backplanes.redis_scripts"),
    ("backplanes.redis_links", "backplanes"),
    ("backplanes.redis_links", "backplanes.reasons"),
    ("backplanes.redis_members", "backplanes"),
    ("backplanes.redis_members", "backplanes.reasons"),
    ("backplanes.redis_members", "backplanes.records"),
    ("backplanes.redis_members", "backplanes.redis_links"),
    ("backplanes.redis_members", "backplanes.redis_scripts"),
    ("backplanes.redis_members", "backplanes.roster"),
    ("backplanes.redis_servers", "backplanes"),
    ("backplanes.redis_servers", "backplanes.reasons"),
    ("backplanes.redis_servers", "backplanes.records"),
    ("backplanes.redis_servers", "backplanes.redis_links"),
    ("backplanes.redis_servers", "backplanes.redis_scripts"),
    ("backplanes.roster", "backplanes"),
    ("backplanes.urls", "backplanes.nats"),
    ("backplanes.urls", "backplanes.redis"),
    ("operations", "exposition"),
    ("operations", "integrations"),
    ("operations", "realtime"),
    ("realtime_http", "node_calls"),
    ("exchange", "publishing"),
    ("publishing", "_publish"),
    ("publishing", "_publish_py"),
    ("session", "permissions"),
    ("session", "publishing"),
    ("http_server", "http_connection"),
    ("http_server", "listening"),
    ("http_connection", "http1"),
    ("http_connection", "sse"),
    ("realtime", "exchange"),
    ("realtime", "realtime_http"),
    ("realtime", "session"),
    ("realtime_http", "integrations"),
    ("realtime_http", "server_api"),
    ("realtime_http", "sse_peer"),
    ("server_api", "session"),
    ("session", "recovery"),
    ("sse", "stream_context"),
    ("street_socket", "handler_types"),
    ("street_socket", "rates"),
    ("integrations", "integrations.aiohttp"),
    ("integrations", "integrations.uvicorn"),
    ("integrations.aiohttp", "integrations.handover"),
    ("integrations.asgi", "integrations.handover"),
    ("integrations.uvicorn", "integrations.asgi"),
    ("integrations.uvicorn", "integrations.handover"),
    ("__main__", "cli"),
    ("cli", "demo"),
    ("cli", "logs"),
    ("cli", "serving"),
    ("cli", "supervisor"),
    ("application", "options"),
    ("cli", "application"),
    ("cli", "banner"),
    ("cli", "options"),
    ("control", "options"),
    ("local_nats", "options"),
    ("serving", "application"),
    ("serving", "banner"),
    ("serving", "options"),
    ("supervisor", "banner"),
    ("supervisor", "options"),
    ("worker", "application"),
    ("worker", "options"),
    ("supervisor", "control"),
    ("supervisor", "local_nats"),
    ("supervisor", "serving"),
    ("worker", "control"),
    ("worker", "logs"),
    ("worker", "serving"),
}
"""Imports within a floor: each says which of the two is the lower one."""

UPWARD = {
    # The switch is the only door to the codec, and Frame is a value of the codec.
    ("messages", "_core"),
    # attach() looks up whoever knows that kind of HTTP server, inside the function.
    ("server", "integrations"),
}

LIBRARIES = {
    "aiohttp": {"integrations.aiohttp"},
    "httptools": {"client.handshake", "http1", "integrations.uvicorn"},
    "jwt": {"jwt_keys"},
    "nats": {"backplanes.nats_link"},
    "prometheus_client": {"exposition"},
    "redis": {"backplanes.redis_links"},
    "msgspec": {
        "backplanes.nats_history",
        "backplanes.records",
        "client.client",
        "client.messages",
        "client.protocol",
        "client.subscriptions",
        "control",
        "demo",
        "exchange",
        "hub",
        "messages",
        "options",
        "realtime_http",
        "refusals",
        "server_api",
        "session",
        "supervisor",
    },
    "orjson": {"auth", "jwt_keys", "messages", "request"},
    "uvicorn": {"integrations.uvicorn"},
    "uvloop": {"runner"},
    "Cython": {"_wheel_py"},
    "cython": {"_wheel_py"},
}
"""Where each library outside the standard library may be imported."""

SANS_IO_FORBIDS = {"asyncio", "logging", "selectors", "socket", "threading", "time"}
STANDARD = sys.stdlib_module_names | {"annotationlib"}  # the latter from 3.14 on


def modules() -> dict[str, Path]:
    """Name within the package -> file; a package goes by its own name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")) + sorted(PACKAGE.rglob("*.pyx")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


MODULES = modules()
PYTHON_MODULES = {name: path for name, path in MODULES.items() if path.suffix == ".py"}


def is_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in ast.unparse(test).split(".")


def imports(source: str) -> set[str]:
    """Every module that is imported, by its absolute name; ``from a import b`` counts as both a and a.b."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and is_type_checking(node.test):
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        todo.extend(ast.iter_child_nodes(node))
    return found


def cython_imports(source: str) -> set[str]:
    """The plain imports of a .pyx: whole lines, which is how they are written."""
    lines = [line for line in source.splitlines() if line.startswith(("import ", "from ")) and "cimport" not in line]
    return imports("\n".join(line if "(" not in line else line.split("import")[0] + "import _" for line in lines))


def imports_of(name: str) -> set[str]:
    path = MODULES[name]
    source = path.read_text("utf-8")
    return cython_imports(source) if path.suffix == ".pyx" else imports(source)


def own_imports(name: str) -> set[str]:
    prefix = "street_fast."
    return {module.removeprefix(prefix) for module in imports_of(name) if module.removeprefix(prefix) in FLOOR_OF}


def test_every_module_has_a_floor() -> None:
    assert set(MODULES) - set(FLOOR_OF) - BESIDE == set()


@pytest.mark.parametrize("name", sorted(set(MODULES) - BESIDE))
def test_a_module_imports_only_what_is_below(name: str) -> None:
    floor = FLOOR_OF[name]
    for imported in own_imports(name):
        below = FLOOR_OF[imported] < floor or (FLOOR_OF[imported] == floor and (name, imported) in SAME_FLOOR)
        allowed = below or any(
            (name, imported) == (n, i) or imported.startswith(f"{i}.") for n, i in UPWARD if n == name
        )
        assert allowed, f"{name} (F{floor}) imports {imported} (F{FLOOR_OF[imported]})"
    for imported in imports_of(name):
        assert imported.removeprefix("street_fast.") not in BESIDE, f"{name} imports {imported}"


@pytest.mark.parametrize("name", sorted(FLOORS[0] | FLOORS[1] & set(MODULES) | SANS_IO_BESIDE))
def test_the_lowest_floors_know_no_io(name: str) -> None:
    if name in MODULES:
        assert imports_of(name) & SANS_IO_FORBIDS == set()


@pytest.mark.parametrize("name", sorted(set(MODULES) - BESIDE - FLOORS[1] - FLOORS[2] - {"publishing"}))
def test_nobody_imports_past_the_switch(name: str) -> None:
    parts = {"_frames", "_wheel", "_connection", "_intake", "_publish"}
    assert own_imports(name) & (parts | {f"{part}_py" for part in parts}) == set()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_libraries_are_imported_where_they_belong(name: str) -> None:
    for imported in imports_of(name):
        root = imported.partition(".")[0]
        if root in STANDARD or root == "street_fast":
            continue
        assert name in LIBRARIES.get(root, set()), f"{name} imports {root}"


def test_type_checking_imports_are_no_imports() -> None:
    source = "import x\nif TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    from c import d"
    assert imports(source) == {"x", "b", "c", "c.d"}
