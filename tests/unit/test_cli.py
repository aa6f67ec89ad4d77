"""The command street-fast: its options, where they come from, and one sentence for every mistake."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest

import street_fast
from street_fast import cli
from street_fast.cli import main
from street_fast.options import Allowed, Kept, Options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No options of whoever runs the tests; and logging is afterwards as it was."""
    for setting in cli._SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What street_fast.demo.run was called with."""
    calls: list[tuple[str, int]] = []
    module = types.ModuleType("street_fast.demo")
    module.run = lambda host, port: calls.append((host, port))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "street_fast.demo", module)
    monkeypatch.setattr(street_fast, "demo", module, raising=False)
    return calls


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """The options that would be served."""
    calls: list[Options] = []
    monkeypatch.setattr(cli, "_serve", calls.append)
    return calls


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence that these arguments are refused with."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(r" \(see street-fast( \w+)? --help\)\n$", err)
    return err


def test_demo(demo: list[tuple[str, int]]) -> None:
    main(["demo"])
    main(["demo", "--host", "::1", "--port", "0"])
    assert demo == [("127.0.0.1", 3000), ("::1", 0)]


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["demo", "--port", "x"], ["demo", "--port", "65536"]])
def test_wrong_arguments(arguments: list[str], demo: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, *arguments)
    assert demo == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"street_fast {street_fast.__version__}\n"


def test_the_defaults_are_those_of_the_options(served: list[Options]) -> None:
    main(["serve"])
    assert served == [Options()]


def test_all_options(served: list[Options], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("of the file\n")
    arguments = (
        "--host ::1 --port 0 --uds /run/s --tls-cert c.pem --tls-key k.pem --path /ws --history room:*=10/5m "
        "--history a=b=none --allow news:*=subscribe,history --allow *=none --allow x=all --api-key one --api-key "
        f"@{tmp_path}/key --jwt-key s --jwt-issuer i --jwt-audience a --no-guests --allowed-origin https://a.example "
        f"--max-connections 5 --workers 4 --backplane redis://h --drain-timeout 1.5m --app-dir {tmp_path} --ops-host h "
        "--ops-port 0 --log-format json --log-level debug"
    )
    main(["serve", *arguments.split()])
    assert served == [
        Options(
            app_dir=str(tmp_path),
            host="::1",
            port=0,
            uds="/run/s",
            tls_cert="c.pem",
            tls_key="k.pem",
            path="/ws",
            history=[Kept("room:*", 10, 300.0), Kept("a=b", 0, 0.0)],
            allow=[
                Allowed("news:*", ["subscribe", "history"]),
                Allowed("*", []),
                Allowed("x", ["history", "presence", "publish", "subscribe"]),
            ],
            api_key=["one", "of the file"],
            jwt_key=["s"],
            jwt_issuer=["i"],
            jwt_audience=["a"],
            guests=False,
            allowed_origin=["https://a.example"],
            max_connections=5,
            workers=4,
            backplane="redis://h",
            drain_timeout=90.0,
            ops_host="h",
            ops_port=0,
            log_format="json",
            log_level="debug",
        )
    ]


def test_the_environment_counts_less_than_the_command_line(
    served: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "APPLICATION": "app:made.realtime",
        "PORT": "1",
        "WORKERS": "3",
        "HISTORY": "a=1/1 b=2/2",
        "NO_GUESTS": "0",
        "LOG_LEVEL": "",
        "API_KEY": "of the  application",
    }.items():
        monkeypatch.setenv(f"STREET_FAST_{name}", value)
    main(["serve", "--port", "2"])
    assert served == [
        Options(
            application="app:made.realtime",
            port=2,
            workers=3,
            history=[Kept("a", 1, 1.0), Kept("b", 2, 2.0)],
            api_key=["of", "the", "application"],
        )
    ]


def test_an_application_of_the_environment_is_one(
    served: list[Options], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREET_FAST_APPLICATION", "app:realtime")
    assert "--api-key: app:realtime says that itself" in refused(capsys, "serve", "--api-key", "x" * 16)


def test_what_kubernetes_says_of_a_service_of_this_name_is_no_port(
    served: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREET_FAST_PORT", "tcp://10.0.0.1:3000")
    main(["serve"])
    assert served == [Options()]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["app"], "'app' must be MODULE:ATTRIBUTE, such as app:realtime"),
        (["src/app.py"], "'src/app.py' must be MODULE:ATTRIBUTE, not a file: src.app:realtime"),
        (["app.py:make"], "'app.py:make' must be MODULE:ATTRIBUTE, not a file: app:make"),
        (["--port", "-1"], "--port: '-1' must be a port, a whole number from 0 to 65535"),
        (["--workers", "0"], "--workers: '0' must be a whole number from 1 to 512"),
        (["--worker", "2"], "there is no --worker; did you mean --workers?"),
        (["a:b", "c:d"], "'c:d': there is an application already, a:b"),
        (["a:b", "--port", "1", "c:d"], "there is no c:d"),
        (["--host", ""], "--host: it must not be empty"),
        (["--history", "room"], "--history: 'room' must be PATTERN=SIZE/TTL, such as 'room:*=100/5m', or PATTERN=none"),
        (["--history", "a=x/5m"], "--history: 'a=x/5m' must be PATTERN=SIZE/TTL"),
        (["--history", "a=0/5m"], "--history: History.size=0: must be a whole number of messages from 1"),
        (["--history", "a=5/0"], "--history: '0' must be a time above 0, such as 30, 90s, 5m, 2h or 7d"),
        (["--drain-timeout", "1y"], "--drain-timeout: '1y' must be a time above 0"),
        (["--allow", "news"], "--allow: 'news' must be PATTERN=ACTIONS, such as 'news:*=subscribe,history'"),
        (["--allow", "n=read"], "--allow: 'n=read' must be PATTERN=ACTIONS"),
        (["--api-key", "@/nowhere"], "--api-key: /nowhere cannot be read: No such file or directory"),
        (["--path", "realtime"], "--path: path='realtime': must be a string that starts with '/'"),
        (["--allowed-origin", "a.example"], "--allowed-origin: allowed_origins"),
        (["--backplane", "redis"], "--backplane: 'redis' must be an address, such as redis://host:6379/0"),
        (["--app-dir", "/nowhere"], "--app-dir: there is no folder '/nowhere'"),
        (["--log-format", "xml"], "--log-format: 'xml' must be one of human, json"),
        (["--tls-key", "k.pem"], "--tls-key: --tls-cert is needed, too"),
        (["--no-guests"], "--no-guests: nobody could log in; give --jwt-key or --jwks, too"),
        (["--jwt-issuer", "i"], "--jwt-issuer: nobody could log in; give --jwt-key or --jwks, too"),
        (["--jwt-key", "k", "--jwks", "u"], "--jwks: there is a --jwt-key; give one of the two"),
        (["--port", "9000", "--ops-port", "9000"], "--ops-port: 9000 is the --port already; without --ops-port"),
        (["app:r", "--history", "a=1/1"], "--history: app:r says that itself; it is for a server without one"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    served: list[Options], capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert sentence in refused(capsys, "serve", *arguments)
    assert served == []


def test_a_wrong_variable_is_one_sentence(
    served: list[Options], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value, sentence in (
        ("PORT", "x", "STREET_FAST_PORT: 'x' must be a port"),
        ("HISTORY", "a=1/1 b", "STREET_FAST_HISTORY: 'b' must be PATTERN=SIZE/TTL"),
        ("NO_GUESTS", "yes", "STREET_FAST_NO_GUESTS: 'yes' must be 0 or 1"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(f"STREET_FAST_{name}", value)
            assert sentence in refused(capsys, "serve")


def test_a_secret_is_not_repeated(
    served: list[Options], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").touch()
    assert "empty is empty" in refused(capsys, "serve", "--api-key", f"@{tmp_path}/empty")
    assert "secret" not in refused(capsys, "serve", "--backplane", "secret@host")


def test_the_help_names_every_option_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert caught.value.code == 0
    text = re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out))
    for setting in cli._SETTINGS[1:]:
        assert setting.option in text
        assert setting.help in text or setting.help.split(" (")[0] in text
    assert "(default 127.0.0.1)" in text
    assert "(default 30)" in text
    assert "STREET_FAST_LOG_FORMAT" in text


def test_every_option_is_a_field_of_the_options() -> None:
    names = {setting.name for setting in cli._SETTINGS}
    assert (names - {"no_guests"}) | {"guests"} == set(Options.__struct_fields__)


# --- what comes of them ---


def ends(capsys: pytest.CaptureFixture[str], options: Options) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as caught:
        cli._serve(options)
    out, err = capsys.readouterr()
    assert out == ""
    return caught.value.code, err


def test_what_cannot_be_served_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "an_application_that_fails.py").write_text("1 / 0\n")
    for options, status, sentence in (
        (Options(port=0, tls_cert="nowhere.pem"), 1, "--tls-cert nowhere.pem: No such file or directory"),
        (Options(port=0, api_key=["short"]), 2, "api_key: must be a string of at least 16 printable ASCII"),
        (Options(application="an_application_that_is_not:it"), 1, "there is no module 'an_application_that_is_not'"),
    ):
        code, err = ends(capsys, options)
        assert code == status
        assert err.startswith(f"street-fast serve: {sentence}")
        assert err.count("\n") == 1
    code, err = ends(capsys, Options(application="an_application_that_fails:it", app_dir=str(tmp_path)))
    *traceback, last = err.splitlines()
    assert code == 1
    assert (
        last == "street-fast serve: an_application_that_fails cannot be imported: ZeroDivisionError: division by zero"
    )
    assert [line for line in traceback if "File" in line] == [
        f'  File "{tmp_path / "an_application_that_fails.py"}", line 1, in <module>'
    ]


def test_what_cannot_be_served_is_one_object_for_programs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "another_that_fails.py").write_text("1 / 0\n")
    options = Options(application="another_that_fails:it", app_dir=str(tmp_path), log_format="json")
    code, err = ends(capsys, options)
    told = json.loads(err)
    assert (code, told["level"]) == (1, "error")
    assert told["message"] == "another_that_fails cannot be imported: ZeroDivisionError: division by zero"
    assert told["traceback"].endswith("ZeroDivisionError: division by zero\n")
    code, err = ends(capsys, Options(port=0, api_key=["short"], log_format="json"))
    assert (code, "traceback" in json.loads(err)) == (2, False)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_address_that_cannot_be_had(capsys: pytest.CaptureFixture[str], workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = ends(capsys, Options(port=port, workers=workers))
    line = f"127.0.0.1:{port} is already in use; stop what listens there, or choose another port\n"
    assert told == (1, f"street-fast serve: {line}")


def test_an_address_that_cannot_be_had_by_the_demo_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = subprocess.run(
            [sys.executable, "-m", "street_fast", "demo", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert (ran.returncode, ran.stdout) == (1, "")
    line = f"street_fast: 127.0.0.1:{port} is already in use; stop what listens there, or choose another port\n"
    assert ran.stderr == line


def test_python_m_street_fast() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "street_fast", "--version"], capture_output=True, text=True, timeout=20, check=True
    )
    assert ran.stdout == f"street_fast {street_fast.__version__}\n"
