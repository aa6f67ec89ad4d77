#!/bin/sh
# The tests that reach the C code, over extensions built with AddressSanitizer and UndefinedBehaviorSanitizer: on a copy
# of the tree in build/sanitize, so that the extensions in place stay as they are. Run by `make sanitize`, with the
# environment's python on PATH; arguments go to pytest and replace the default tests.
#
# The interpreter is not instrumented, so the runtimes are preloaded, and Python takes each object from malloc, where
# AddressSanitizer sees it. Leaks are not looked for here, since CPython frees little at exit: tests/faults/test_leaks.py does.
set -eu

cc=${CC:-gcc}
libraries=
for name in libasan.so libubsan.so; do
    path=$("$cc" -print-file-name="$name" 2>/dev/null || true)
    case $path in
    /*) libraries="$libraries $path" ;;
    *)
        echo "sanitize.sh: $cc has no $name; GCC on Linux is needed (Debian, Ubuntu: apt-get install gcc)" >&2
        exit 1
        ;;
    esac
done

[ $# -gt 0 ] || set -- tests/unit/test_frames.py tests/unit/test_connection.py tests/unit/test_wheel.py tests/unit/test_intake.py \
    tests/unit/test_publish.py tests/unit/test_session.py tests/property tests/conformance tests/faults

rm -rf build/sanitize
mkdir -p build/sanitize
cp -R setup.py pyproject.toml README.md LICENSE docs street_fast tests build/sanitize
cd build/sanitize
rm -f street_fast/*.so
STREET_FAST_SANITIZE=address,undefined python setup.py -q build_ext --inplace

export LD_PRELOAD="${libraries# }" PYTHONMALLOC=malloc PYTHONPATH=.
# Reports of ASan go to files, since tests keep what the processes that they start write to stderr.
export ASAN_OPTIONS="detect_leaks=0:exitcode=99:log_path=$PWD/report"
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1

# A run over another build would find nothing.
python - <<'PROOF'
import pathlib
import importlib
for name in ("_connection", "_frames", "_intake", "_publish", "_wheel"):
    file = pathlib.Path(importlib.import_module(f"street_fast.{name}").__file__)
    assert file.is_relative_to(pathlib.Path.cwd()), f"{file} is not in the copy"
    assert b"__asan_init" in file.read_bytes(), f"{file} is not instrumented"
PROOF
status=0
python -m pytest -q --capture=sys -p no:cacheprovider -p no:benchmark --timeout=900 "$@" || status=$?
for report in report.*; do
    if [ -e "$report" ]; then
        cat "$report" >&2
        status=99
    fi
done
exit $status
