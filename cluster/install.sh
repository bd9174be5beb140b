#!/usr/bin/env bash
# Make .venv from the lock file. Re-runs only when the lock or pyproject.toml changed.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=requirements-cpu.lock
stamp=.venv/.safevl-installed
want=$(cat "$lock" pyproject.toml | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    exit 0
fi
python=${PYTHON:-python3.11}
command -v "$python" > /dev/null || python=python3
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || {
    echo "SafeVL needs Python 3.11 or 3.12; set PYTHON to one" >&2
    exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet uv
# uv does not read pip's configuration, and a CPU wheel of torch is often found through it.
links=$(.venv/bin/python -m pip config get env.find-links 2> /dev/null || .venv/bin/python -m pip config get global.find-links 2> /dev/null || true)
index=$(.venv/bin/python -m pip config get env.index-url 2> /dev/null || .venv/bin/python -m pip config get global.index-url 2> /dev/null || true)
# Bytecode is written here once: every role is a process of its own, and where Python may not write it
# (PYTHONDONTWRITEBYTECODE) each would compile torch and transformers again.
options=(--quiet --python .venv/bin/python --no-deps --compile-bytecode)
for link in $links; do options+=(--find-links "$link"); done
[ -z "$index" ] || options+=(--default-index "$index")
echo "installing SafeVL into .venv ..."
if ! .venv/bin/uv pip install "${options[@]}" -r "$lock" 2> .venv/install.log; then
    if grep -q 'torch' .venv/install.log; then
        echo "no CPU wheel of torch on the configured indexes; trying PyTorch's own CPU index"
        .venv/bin/uv pip install "${options[@]}" --torch-backend cpu -r "$lock"
    else
        cat .venv/install.log >&2
        exit 1
    fi
fi
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
echo "$want" > "$stamp"
