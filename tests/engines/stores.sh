# What s3.sh and gcs.sh share; they source it after common.sh, and then call `try_store ROOT BEAM_OPTIONS...` with their server running.

# tool COMMAND ARGUMENTS: stores.py with the variables in `tool_environment`.
tool() { env ${tool_environment[@]+"${tool_environment[@]}"} "$venv/bin/python" "$here/stores.py" "$@"; }

# same_submission RUN: whether a run in the store has the submission of the run on the local disk.
same_submission() {
  tool fetch "$1/submission.csv" "$work/found.csv"
  same_bytes "$work/local/run/submission.csv" "$work/found.csv"
}

try_store() {
  local root="$1" job queries
  local options=("${@:2}")
  local extraction=(--images "$root/index" --labels "$root/labels.csv" "${options[@]}")

  say "the local disk"
  run_both "$work/local"

  say "everything in $root: a folder, a list, tables, index, run"
  tool upload "$root" "$work"
  landmarks index "${extraction[@]}" --output "$root/out/index"
  landmarks recognize --images "@$root/queries.txt" --index "$root/out/index" --output "$root/out/run" --truth "$root/truth.csv" "${options[@]}"
  landmarks evaluate --predictions "$root/out/run" --truth "$root/truth.csv" "${options[@]}"
  landmarks verify "$root/out/index" "${options[@]}"
  landmarks verify "$root/out/run" "${options[@]}"
  same_submission "$root/out/run"

  say "index in two worker processes, killed after 2 units, and started again; a glob"
  start killed "$venv/bin/landmarks" index "${extraction[@]}" --output "$root/resumed/index" --direct_num_workers=2 --direct_running_mode=multi_processing
  job=$!
  tool await "$root/resumed/index" 2 "$job" || { echo "it ended before it could be killed" >&2; return 1; }
  kill -KILL -- "-$job" 2>/dev/null || true
  wait "$job" 2>/dev/null || true
  if landmarks verify "$root/resumed/index" "${options[@]}"; then echo "it was finished before it could be killed" >&2; return 1; fi
  landmarks index "${extraction[@]}" --output "$root/resumed/index" --direct_num_workers=2 --direct_running_mode=multi_processing
  landmarks verify "$root/resumed/index" "${options[@]}"
  landmarks recognize --images "$root/queries/**/*.jpg" --index "$root/resumed/index" --output "$root/resumed/run" "${options[@]}"
  same_submission "$root/resumed/run"

  say "recognize within 1 second, within ${BUDGET:-60s}, and without a limit"
  queries="$(wc -l <"$work/queries.txt")"
  for budget in 1s "${BUDGET:-60s}" ""; do
    landmarks recognize --images "@$root/queries.txt" --index "$root/out/index" --output "$root/budget/run" ${budget:+"--time_budget=$budget"} "${options[@]}"
    tool fetch "$root/budget/run/submission.csv" "$work/found.csv"
    echo "submission.csv: $(($(wc -l <"$work/found.csv") - 1)) of $queries rows, $(grep -c ',.' <(tail -n +2 "$work/found.csv") || true) predicted"
    [ "$(wc -l <"$work/found.csv")" -eq "$((queries + 1))" ]
  done
  same_submission "$root/budget/run"
}

# try_suite VARIABLE=FOLDER: the tests of the suite that need a server.
try_suite() {
  say "the suite's tests on this server"
  (cd "$checkout" && env ${tool_environment[@]+"${tool_environment[@]}"} "$1" "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/test_object_stores.py)
}
