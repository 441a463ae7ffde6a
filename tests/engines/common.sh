# What the scripts in this folder share; they source it. Gives $engines, $work and $checkout, and ends what `start` has started.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
checkout="$(cd "$here/../.." && pwd)"
engines="${LANDMARKS_ENGINES:-$HOME/.cache/landmarks-engines}" # kept: environments and programs
work="$(mktemp -d "${TMPDIR:-/tmp}/landmarks-engines.XXXXXX")" # removed at the end: photographs' lists, outputs, logs
venv="$engines/venv"
started=()

say() { printf '\n== %s\n' "$*"; }

# Ends every process that `start` has started, with its children, and removes the work folder; where the script failed, shows the logs.
finish() {
  local code=$? group
  trap - EXIT
  for group in ${started[@]+"${started[@]}"}; do kill -TERM -- "-$group" 2>/dev/null || true; done
  for group in ${started[@]+"${started[@]}"}; do
    for _ in $(seq 50); do kill -0 -- "-$group" 2>/dev/null || continue 2; sleep 0.1; done
    kill -KILL -- "-$group" 2>/dev/null || true
  done
  if [ "$code" -ne 0 ]; then tail -n 40 "$work"/*.log >&2 2>/dev/null || true; fi
  rm -rf "$work"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# start NAME COMMAND...: in the background, in a process group of its own, with its output in $work/NAME.log; its number is then in $!.
start() {
  local name="$1"
  shift
  setsid "$@" >"$work/$name.log" 2>&1 </dev/null &
  started+=($!)
}

# A port that is free now.
free_port() { "${PYTHON:-python3.11}" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# wait_for_port PORT: until something on this machine listens there; fails after three minutes.
wait_for_port() {
  for _ in $(seq 900); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return; fi
    sleep 0.2
  done
  echo "nothing listens on port $1" >&2
  return 1
}

# make_environment [EXTRA]: this checkout, installed as it is now into $venv; its dependencies only where setup.py or pyproject.toml has changed.
make_environment() {
  local wanted stamp="$venv/.installed-${1:-}" source="$work/source"
  [ -x "$venv/bin/python" ] || "${PYTHON:-python3.11}" -m venv "$venv"
  mkdir "$source" # a build leaves its own files where it works
  cp -r "$checkout"/{setup.py,pyproject.toml,README.md,LICENSE,NOTICE,beam_pipeline,transforms} "$source"
  wanted="$(cat "$checkout/setup.py" "$checkout/pyproject.toml" | cksum)"
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    say "installing into $venv (a minute or two, once)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$source${1:+[$1]}"
    printf '%s\n' "$wanted" >"$stamp"
  fi
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$source"
  rm -rf "$source"
}

landmarks() { "$venv/bin/landmarks" "$@"; }

# go_tool NAME VERSION MODULE: builds a program of that module once; its path is then in $tool_path.
go_tool() {
  tool_path="$engines/$1-$2/$1"
  [ -x "$tool_path" ] && return
  say "building $1 $2 (up to some minutes, once)"
  GOBIN="$(dirname "$tool_path")" go install "$3@$2"
}

# make_photographs IMAGES QUERIES: lists of photographs $work/index.txt and $work/queries.txt, $work/labels.csv and $work/truth.csv.
make_photographs() {
  (cd "$work" && "$venv/bin/python" "$here/photographs.py" "$work" --images "$1" --queries "$2" --demo "$engines/demo")
}

# start_worker_pool PORT: Beam's pool of Python workers, each a process of its own in the pool's group; its number is then in $!.
start_worker_pool() {
  PATH="$venv/bin:$PATH" start "workers-$1" "$venv/bin/python" -m apache_beam.runners.worker.worker_pool_main "--service_port=$1"
  wait_for_port "$1"
}

# kill_after UNITS STORE JOB GROUP...: once the JOB has UNITS files in STORE/images, kills the process GROUPs as a broken machine would.
kill_after() {
  local units="$1" images="$2/images" job="$3" group
  shift 3
  until [ "$(find "$images" -name '*.parquet' 2>/dev/null | wc -l)" -ge "$units" ]; do
    kill -0 "$job" 2>/dev/null || { echo "the job ended before it could be disturbed" >&2; return 1; }
    sleep 0.1
  done
  for group; do kill -KILL -- "-$group"; done
  echo "killed after $(find "$images" -name '*.parquet' | wc -l) units"
}

# run_both OUTPUT OPTIONS...: index and recognize into OUTPUT/index and OUTPUT/run; prints how long it took.
run_both() {
  local output="$1" begun="$SECONDS"
  shift
  landmarks index --images "@$work/index.txt" --labels "$work/labels.csv" --output "$output/index" "$@"
  landmarks recognize --images "@$work/queries.txt" --index "$output/index" --output "$output/run" --truth "$work/truth.csv" "$@"
  echo "$output: $((SECONDS - begun)) s"
}

# same_bytes EXPECTED FOUND: compares two submissions; the last line of every script.
same_bytes() {
  say "comparing $1 with $2"
  [ "$(wc -l <"$1")" -gt 1 ] || { echo "$1 has no rows" >&2; return 1; }
  sha256sum "$1" "$2"
  cmp "$1" "$2"
  echo "same bytes"
}
