#!/usr/bin/env bash
# A local teacher for recipes with teacher.api, such as step-by-step: `infra/teacher.sh start`, and later `stop`.
#
# SmolLM2-135M-Instruct is fetched by its digest, converted once into .run/teacher, and served at
# http://127.0.0.1:8411/v1 (another port: PORT=…; more threads: THREADS=…). Nothing outside this machine can reach it.
set -euo pipefail
cd "$(dirname "$0")/.."

port=${PORT:-8411}
address=http://127.0.0.1:$port/v1
work=.run/teacher
pid_file=$work/$port.pid

running() { [ -f "$pid_file" ] && kill -0 "$(cat "$pid_file")" 2>/dev/null; }
answers() { curl --silent --fail --noproxy '*' --max-time 5 "$address/models" >/dev/null; }

case ${1:-start} in
start)
    [ -x .venv/bin/stillhouse ] || infra/install.sh run
    mkdir -p "$work"
    if ! running; then
        if answers; then
            echo "another server answers at $address; stop it, or choose another port: PORT=… infra/teacher.sh start" >&2
            exit 78
        fi
        nohup env OMP_WAIT_POLICY=PASSIVE .venv/bin/python infra/teacher_server.py --port "$port" --work "$work" \
            --threads "${THREADS:-2}" >"$work/$port.log" 2>&1 </dev/null &
        echo $! >"$pid_file"
    fi
    until answers; do
        if ! running; then
            tail -n 20 "$work/$port.log" >&2
            echo "the teacher did not start; the whole log is $work/$port.log" >&2
            exit 75
        fi
        sleep 1
    done
    echo "teacher smollm2 answers at $address   (stop it: PORT=$port infra/teacher.sh stop)"
    ;;
stop)
    if running; then
        kill "$(cat "$pid_file")"
    fi
    rm -f "$pid_file"
    ;;
*)
    echo "usage: infra/teacher.sh [start|stop]" >&2
    exit 78
    ;;
esac
