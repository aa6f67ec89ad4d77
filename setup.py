"""The C extensions; everything else about the package is in pyproject.toml.

``_frames`` and ``_connection`` are written in Cython beside a pure-Python twin; ``_wheel``, ``_intake`` and
``_publish`` are their own twins: the source ``_wheel_py.py`` runs as it is, and is compiled here under the other name.
They are built all or none, because the package knows two configurations only, compiled and pure. Switches, in the
environment:

* ``STREET_FAST_REQUIRE_EXTENSIONS=1``: a failed compile is an error, as it is for ``setup.py build_ext``. Otherwise it
  is a loud warning, and the package is installed without the extensions and runs as pure Python.
* ``STREET_FAST_PURE_BUILD=1``: leave the extensions out, and make a wheel for any platform.
* ``STREET_FAST_DEBUG_BUILD=1``: bounds checks, assertions, no optimisation, debug symbols.
* ``STREET_FAST_SANITIZE=address,undefined``: the compiler's sanitizers, by their names for ``-fsanitize=``.

No flag names a processor: what needs AVX2 carries a function attribute and is chosen at run time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = {
    "street_fast._frames": "street_fast/_frames.pyx",
    "street_fast._wheel": "street_fast/_wheel_py.py",
    "street_fast._connection": "street_fast/_connection.pyx",
    "street_fast._intake": "street_fast/_intake_py.py",
    "street_fast._publish": "street_fast/_publish_py.py",
}


def switch(name: str) -> bool:
    value = os.environ.get(name, "0")
    if value not in ("", "0", "1"):
        sys.exit(f"setup.py: {name} is {value!r}; it must be 0 or 1")
    return value == "1"


REQUIRED = switch("STREET_FAST_REQUIRE_EXTENSIONS") or "build_ext" in sys.argv
PURE = switch("STREET_FAST_PURE_BUILD")
DEBUG = switch("STREET_FAST_DEBUG_BUILD")
SANITIZE = os.environ.get("STREET_FAST_SANITIZE", "")


def compiler_flags() -> list[str]:
    if sys.platform == "win32":
        return ["/Od", "/Zi"] if DEBUG else ["/O2"]
    # Cython's objects are seen through more than one struct type, so strict aliasing stays off.
    flags = ["-fno-strict-aliasing", "-fvisibility=hidden", "-Wno-unused-function", "-Wno-unreachable-code"]
    if SANITIZE:
        flags += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    if DEBUG:
        return [*flags, "-O0", "-g", "-UNDEBUG", "-U_FORTIFY_SOURCE"]
    return [*flags, "-O1", "-g"] if SANITIZE else [*flags, "-O3", "-g0"]


def extension(name: str, source: str) -> Extension:
    headers = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "street_fast").glob("*.h"))
    return Extension(
        name,
        [source],
        depends=["setup.py", *headers],
        include_dirs=["street_fast"],
        extra_compile_args=compiler_flags(),
        extra_link_args=[f"-fsanitize={SANITIZE}"] if SANITIZE else [],
        define_macros=[] if DEBUG else [("CYTHON_WITHOUT_ASSERTIONS", "1")],
    )


class BuildExtensions(build_ext):
    """Compiles all of the extensions, or reports why not and leaves none."""

    def build_extensions(self) -> None:
        # Cython and distutils look at dates only, which would mix objects of a debug and a release build.
        key = f"{DEBUG} {SANITIZE} {sys.prefix} {sys.version} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}"
        stamp = ROOT / "build" / "switches"
        self.force = self.force or not stamp.exists() or stamp.read_text() != key
        stamp.unlink(missing_ok=True)
        failures: list[Exception] = []
        for ext in self.extensions:
            try:
                ext.sources = self.generate_c(ext)
                self.build_extension(ext)
            except Exception as error:
                if REQUIRED:
                    raise
                failures.append(error)
        if failures:
            self.leave_none()
            warn_that_the_install_is_pure(failures)
        else:
            stamp.parent.mkdir(exist_ok=True)
            stamp.write_text(key)

    def leave_none(self) -> None:
        """Those that did compile must not get into a wheel, nor those of an earlier build in place be found."""
        for ext in self.extensions:
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            Path(ROOT, self.get_ext_filename(ext.name)).unlink(missing_ok=True)
        self.extensions = []

    def generate_c(self, ext: Extension) -> list[str]:
        from Cython.Build import cythonize

        # Cython looks for the types of a .py under the name of the source, and `_wheel.pxd` bears that of the module.
        # It sees neither that file nor what is taken from the others.
        types = (ROOT / "street_fast").glob("*.pxd")
        built = Path(self.get_ext_fullpath(ext.name))
        stale = built.exists() and max(path.stat().st_mtime for path in types) > built.stat().st_mtime
        # Progress goes to stdout, errors go to stderr; with -q only these are wanted.
        with contextlib.nullcontext() if self.distribution.verbose else contextlib.redirect_stdout(io.StringIO()):
            (with_c,) = cythonize(
                [ext],
                build_dir="build/cython",
                force=bool(self.force) or stale,
                language_level=3,
                compiler_directives={"boundscheck": DEBUG, "wraparound": DEBUG},
            )
        return with_c.sources


def warn_that_the_install_is_pure(failures: list[Exception]) -> None:
    reasons = "\n".join(f"Reason: {type(error).__name__}: {error}" for error in failures)
    bar = "*" * 100
    print(
        f"{bar}\n"
        "street_fast: THE C EXTENSIONS WERE NOT BUILT. The package works, as pure Python, several times slower.\n"
        f"{reasons}\n"
        "It needs a C compiler and the headers of this Python (Debian: apt-get install gcc python3-dev).\n"
        "With STREET_FAST_REQUIRE_EXTENSIONS=1 in the environment this would have been an error.\n"
        f"{bar}",
        file=sys.stderr,
    )


setup(
    ext_modules=[] if PURE else [extension(name, source) for name, source in SOURCES.items()],
    cmdclass={"build_ext": BuildExtensions},
)
