"""The package as it is built and described: one version, all files, no undeclared dependency, one set of extensions."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import street_fast

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "street_fast"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTENSIONS = {
    "_frames": "_frames.pyx",
    "_wheel": "_wheel_py.py",
    "_connection": "_connection.pyx",
    "_intake": "_intake_py.py",
    "_publish": "_publish_py.py",
}


def distribution_name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def setup(*arguments: str, cwd: Path = ROOT, **switches: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREET_FAST_")}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *arguments],
        cwd=cwd,
        env=environment | switches,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_version_is_the_same_everywhere():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == street_fast.__version__
    built = setup("--version")
    assert built.stdout.split() == [street_fast.__version__], built.stderr


def test_supported_pythons_agree():
    classified = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.fullmatch(r"Programming .* :: 3\.\d+", c)}
    wheels = {f"3.{minor}" for minor in re.findall(r"cp3(\d+)-", PYPROJECT["tool"]["cibuildwheel"]["build"])}
    assert classified == wheels
    oldest = min(classified, key=lambda version: int(version.split(".")[1]))
    assert PROJECT["requires-python"] == f">={oldest}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == oldest
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")


def test_the_command_exists():
    for target in PROJECT["scripts"].values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_the_dev_extra_can_build_in_place():
    assert set(PYPROJECT["build-system"]["requires"]) <= set(PROJECT["optional-dependencies"]["dev"])


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_extension_has_source_interface_stub_and_twin(name):
    for file in (EXTENSIONS[name], f"{name}.pxd", f"{name}.pyi", f"{name}_py.py"):
        assert (PACKAGE / file).is_file(), file


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and module of every import that runs: what stands below ``if TYPE_CHECKING`` does not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module or ""
        else:
            yield from imported(node)


EXTRAS = {
    name: {distribution_name(requirement) for requirement in requirements}
    for name, requirements in PROJECT["optional-dependencies"].items()
}
EVERYWHERE = {distribution_name(r) for r in PROJECT["dependencies"]} | set(sys.stdlib_module_names) | {"street_fast"}
NEWER_STDLIB = {"annotationlib", "tomllib"}
DISTRIBUTIONS = {"jwt": "pyjwt", "cryptography": "pyjwt", "nats": "nats-py", "socketio": "python-socketio"}
"""What installs a module that has another name; the extra `crypto` of PyJWT is cryptography."""
EXTRA_OF = {
    "exposition": "metrics",
    "jwt_keys": "jwt",
    "nats_link": "nats",
    "redis_links": "redis",
}
"""The modules of the package that import what an extra installs, and those of `integrations` by their own name."""


def undeclared(path: Path, allowed: set[str]) -> list[str]:
    allowed = allowed | EVERYWHERE | NEWER_STDLIB
    found = []
    for line, module in imported(ast.parse(path.read_text(encoding="utf-8"))):
        root = module.split(".")[0]
        if {root, root.replace("_", "-"), DISTRIBUTIONS.get(root)}.isdisjoint(allowed):
            found.append(f"{path.relative_to(ROOT)}:{line}: {module}")
    return found


def test_every_import_of_the_package_is_a_dependency():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        extra = path.stem if path.parent.name == "integrations" else EXTRA_OF.get(path.stem)
        found += undeclared(path, EXTRAS.get(extra, set()))
    assert found == []


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("tests", ["dev", "uvicorn", "aiohttp", "jwt", "redis", "nats", "metrics"]),
        ("bench", ["bench", "aiohttp", "redis", "nats"]),
    ],
)
def test_every_import_of_the_tests_and_the_bench_is_in_their_extra(folder, extras):
    paths = sorted((ROOT / folder).rglob("*.py"))
    ours = {folder} | {path.stem for path in [*paths, *(ROOT / "tools").glob("*.py")]}
    allowed = ours.union(*(EXTRAS[extra] for extra in extras))
    assert [line for path in paths for line in undeclared(path, allowed)] == []


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> set[str]:
    """Names of the files in the source distribution, without its top folder."""
    out = tmp_path_factory.mktemp("sdist")
    result = setup("egg_info", "--egg-base", str(out), "sdist", "--dist-dir", str(out))
    assert result.returncode == 0, result.stderr
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        return {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}


def test_the_sdist_can_be_built_and_tested(sdist):
    here = {
        path.relative_to(ROOT).as_posix() for folder in ("street_fast", "tests", "tools") for path in sources(folder)
    }
    assert here - sdist == set()
    assert {"pyproject.toml", "setup.py", "Makefile", "README.md", "CHANGELOG.md", "LICENSE"} <= sdist


def test_the_sdist_has_nothing_generated(sdist):
    assert [
        name for name in sdist if re.search(r"(\.(so|pyd|o|pyc)|_(frames|wheel|connection|intake)(_py)?\.c)$", name)
    ] == []
    assert [name for name in sdist if re.search(r"(^|/)(\.|build/|dist/)", name)] == []


def test_the_wheel_has_the_typed_package_and_the_demo(tmp_path):
    result = setup(
        *("egg_info", "--egg-base", str(tmp_path), "build", "--build-base", str(tmp_path / "build")),
        *("bdist_wheel", "--dist-dir", str(tmp_path)),
        STREET_FAST_PURE_BUILD="1",
    )
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"street_fast-{street_fast.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix() for path in sources("street_fast") if path.suffix not in (".pyx", ".h")
    }
    assert packed == expected
    assert {"street_fast/py.typed", "street_fast/_frames.pyi", "street_fast/demo/index.html"} <= packed


def sources(folder: str) -> list[Path]:
    """Files below `folder` that a person wrote."""
    generated = {".so", ".pyd", ".pyc", ".o"}
    return [
        path
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in generated and "__pycache__" not in path.parts
    ]


@pytest.mark.parametrize("name", ["REQUIRE_EXTENSIONS", "DEBUG_BUILD", "PURE_BUILD"])
def test_a_switch_of_the_build_is_0_or_1(name):
    result = setup("--version", **{f"STREET_FAST_{name}": "yes"})
    assert result.returncode != 0
    assert f"STREET_FAST_{name} is 'yes'; it must be 0 or 1" in result.stderr


@pytest.fixture
def broken(tmp_path) -> Path:
    """A checkout of which one extension compiles and one does not."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    package = tmp_path / "street_fast"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "0.1.0"')
    (package / "_frames.pyx").write_text("OP_TEXT = 1\n")
    for name in ("_wheel_py", "_intake_py", "_publish_py"):
        (package / f"{name}.py").write_text("slots = 512\n")
    (package / "_connection.pyx").write_text("def broken(:\n")
    return tmp_path


def test_a_failed_compile_gives_a_pure_wheel_and_a_loud_warning(broken):
    result = setup("bdist_wheel", cwd=broken)
    assert result.returncode == 0, result.stderr
    assert "THE C EXTENSIONS WERE NOT BUILT" in result.stderr
    assert "_connection.pyx" in result.stderr
    with zipfile.ZipFile(next(broken.glob("dist/*.whl"))) as archive:
        assert [name for name in archive.namelist() if name.endswith((".so", ".pyd"))] == []
        assert "street_fast/_wheel_py.py" in archive.namelist()


@pytest.mark.parametrize(
    ("command", "switches"), [("bdist_wheel", {"STREET_FAST_REQUIRE_EXTENSIONS": "1"}), ("build_ext", {})]
)
def test_a_failed_compile_is_an_error_where_the_extensions_are_required(broken, command, switches):
    result = setup(command, cwd=broken, **switches)
    assert result.returncode != 0
    assert "_connection.pyx" in result.stderr
    assert list(broken.glob("dist/*")) == []
