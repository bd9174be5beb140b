#!/usr/bin/env bash
# A local Ray head for this project: `local.sh start` prints its job address, `local.sh stop` ends only what it started.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
state=${SAFEVL_RAY_STATE:-$project/runs/.ray}
ray="$project/.venv/bin/ray"
port=${SAFEVL_RAY_PORT:-6399}
dashboard=${SAFEVL_DASHBOARD_PORT:-8299}
export RAY_AUTH_MODE=token
export PATH="$project/.venv/bin:$PATH"  # a submitted job calls plain `python`
export RAY_worker_niceness=0  # this machine is the cluster: its workers are not background work

alive() { [ -f "$state/pids" ] && for pid in $(cat "$state/pids"); do kill -0 "$pid" 2>/dev/null || return 1; done; }

# A process and everything below it: Ray's agents rename themselves, so their command line does not tell whose they are.
family() { for pid in "$@"; do echo "$pid"; family $(pgrep -P "$pid" || true); done; }

start() {
    mkdir -p "$state"
    if alive; then
        echo "a Ray head of this project is running already" >&2
        return
    fi
    [ -f "$HOME/.ray/auth_token" ] || "$ray" get-auth-token --generate > /dev/null
    # Unix sockets have short names only, so the session lives in /tmp and the project keeps a link.
    session=$(mktemp -d /tmp/safevl-ray-XXXXXX)
    echo "$session" > "$state/session_folder"
    # nproc would take OMP_NUM_THREADS for the number of processors
    if ! SAFEVL_HOME="$project" "$ray" start --head --port="$port" --dashboard-host=127.0.0.1 \
        --dashboard-port="$dashboard" --num-cpus="${SAFEVL_CPUS:-$(env -u OMP_NUM_THREADS nproc)}" --temp-dir="$session" \
        --disable-usage-stats > "$state/start.log" 2>&1; then
        cat "$state/start.log" >&2
        echo "the Ray head did not start; is port $port or $dashboard in use? Set SAFEVL_RAY_PORT, SAFEVL_DASHBOARD_PORT" >&2
        exit 1
    fi
    pgrep -f -- "$session" > "$state/pids"
}

stop() {
    [ -f "$state/session_folder" ] || return 0
    session=$(cat "$state/session_folder")
    pids=$(family $(pgrep -f -- "$session" || true) | sort -u)
    [ -z "$pids" ] || kill $pids 2> /dev/null || true
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        [ -n "$pids" ] && ps -o stat= -p $(echo $pids | tr ' ' ',') | grep -qv Z || break
        sleep 0.3
    done
    [ -z "$pids" ] || kill -KILL $pids 2> /dev/null || true
    rm -rf "$session" "$state"
}

case "${1:-}" in
    start) start; echo "http://127.0.0.1:$dashboard" ;;
    stop) stop ;;
    running) alive ;;
    *) echo "usage: local.sh start|stop|running" >&2; exit 2 ;;
esac
