#!/usr/bin/env bash
# Builds the wheel into dist/, installs it into an empty environment, and runs the demo's first steps there.
#   tools/check_wheel.sh           PYTHON=python3.12 tools/check_wheel.sh for another interpreter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Built from what git knows and from new files, not from what an earlier build has left behind.
git ls-files --cached --others --exclude-standard -z | xargs -0 cp --parents --target-directory "$work/" 2>/dev/null ||
    git ls-files --cached -z | cpio --quiet -0 -pdm "$work/"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/dist" "$work"
mkdir -p "$root/dist"
cp "$work"/dist/bitsfusion-*.whl "$root/dist/"

"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --constraint "$root/constraints.txt" "$(echo "$work"/dist/bitsfusion-*.whl)${EXTRAS-[train,eval]}"
cd "$work" && mkdir empty && cd empty
"$work/venv/bin/python" - <<'CODE'
import bitsfusion
from bitsfusion import kernels

assert "site-packages" in bitsfusion.__file__, bitsfusion.__file__
print(f"installed: {bitsfusion.__file__}")
print(f"kernels: {kernels.available()['cpu']}")
CODE
"$work/venv/bin/bitsfusion" demo --until init --out run --quiet
"$work/venv/bin/python" - <<'CODE'
import json
from pathlib import Path

recipe = json.loads(Path("run/recipe.json").read_text())
print(f"demo until init: {len(recipe['bits'])} layers, {recipe['average_bits']:.4f} bits on average")
CODE
