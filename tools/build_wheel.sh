#!/bin/sh
# Builds the sdist, from it the wheel, makes that a manylinux wheel (on Linux), and proves it in a clean environment
# without a compiler on PATH: the smoke test there echoes a message through a real server. Leaves both in dist/.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

quietly() {
    if ! "$@" >"$work/log" 2>&1; then
        cat "$work/log" >&2
        echo "build_wheel.sh: failed: $*" >&2
        exit 1
    fi
}

export STREET_FAST_REQUIRE_EXTENSIONS=1
rm -rf dist
mkdir dist
quietly python -m build --outdir "$work/built"
if [ "$(uname -s)" = Linux ]; then
    quietly auditwheel repair --wheel-dir dist "$work"/built/*.whl
else
    mv "$work"/built/*.whl dist
fi
mv "$work"/built/*.tar.gz dist

quietly python -m venv "$work/clean"
(
    # The shell's own commands are all that this part needs besides the environment.
    PATH="$work/clean/bin"
    export PATH
    unset CC PYTHONPATH || true
    for compiler in cc gcc clang; do
        if command -v "$compiler"; then
            echo "build_wheel.sh: the clean environment has a compiler" >&2
            exit 1
        fi
    done
    cd "$work"
    python -m pip install -q --disable-pip-version-check --only-binary :all: "$OLDPWD"/dist/*.whl
    python -I "$OLDPWD/tools/smoke.py"
)
ls -l dist
