#!/bin/sh
# Holds the .pyi of the compiled modules to what is compiled, and to their pure-Python twins: the names, parameters and
# defaults that a user's type checker sees are the ones that both builds have. Run by `make lint`, with stubtest on PATH.
set -eu

export PYTHONPATH=.
options="--concise --mypy-config-file pyproject.toml --allowlist tools/stubtest_allowlist.txt
         --ignore-unused-allowlist --ignore-disjoint-bases"

stubtest $options street_fast._frames street_fast._wheel street_fast._connection street_fast._intake \
    street_fast._publish

# A tree in which the compiled module's stub stands for its twin's own annotations.
stubs=$(mktemp -d)
trap 'rm -rf "$stubs"' EXIT
cp -R street_fast "$stubs"
for stem in _frames _wheel _connection _intake _publish; do
    mv "$stubs/street_fast/$stem.pyi" "$stubs/street_fast/${stem}_py.pyi"
    rm "$stubs/street_fast/${stem}_py.py"
done
MYPYPATH=$stubs stubtest $options street_fast._frames_py street_fast._wheel_py street_fast._connection_py \
    street_fast._intake_py street_fast._publish_py
