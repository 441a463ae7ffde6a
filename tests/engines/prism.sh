#!/usr/bin/env bash
# Runs index and recognize on Beam's Prism runner and compares submission.csv with the local runner's; see README.md beside this file.
case "${1:-}" in "" | --kill) ;; *) echo "usage: prism.sh [--kill]" >&2; exit 2 ;; esac
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

make_environment
beam="$("$venv/bin/python" -c 'from apache_beam.version import __version__; print(__version__)')"
go_tool prism "v$beam" github.com/apache/beam/sdks/v2/go/cmd/prism
prism="$tool_path"
make_photographs "${IMAGES:-200}" "${QUERIES:-100}"

say "the local runner, one process"
run_both "$work/local" --direct_num_workers=1

port="$(free_port)"
options=(--runner=PrismRunner "--prism_location=$prism" --environment_type=EXTERNAL "--environment_config=localhost:$port")
start_worker_pool "$port"
pool=$!

if [ "${1:-}" ]; then
  say "Prism; its worker pool is killed in the middle"
  start index "$venv/bin/landmarks" index --images "@$work/index.txt" --labels "$work/labels.csv" --output "$work/prism/index" "${options[@]}"
  job=$!
  kill_after 5 "$work/prism/index" "$job" "$pool"
  wait "$job" && code=0 || code=$?
  echo "the job ended with $code:"
  tail -n 5 "$work/index.log"
  [ "$code" -ne 0 ] || exit 1
  start_worker_pool "$port"
  say "Prism, the same command again"
else
  say "Prism"
fi
run_both "$work/prism" "${options[@]}"

same_bytes "$work/local/run/submission.csv" "$work/prism/run/submission.csv"
