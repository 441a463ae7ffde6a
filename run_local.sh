#!/usr/bin/env bash
# Everything on this machine with one command: see usage below.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${LANDMARKS_VENV:-$here/.venv}"

usage() {
  cat <<'USAGE'
usage: run_local.sh                    demo: makes a small data set, indexes, calibrates, recognizes
                                       with --preset tuned, evaluates, reports
       run_local.sh --images P... --labels CSV|folders --queries P... [--truth CSV] [--output DIR] [OPTIONS]
                                       the same with your own photographs; --image_ids and --exclude go to index
                                       and recognize, other OPTIONS to `landmarks recognize`
                                       (scores of your own need another --preset too: tuned has its own)
       run_local.sh test [PYTEST_ARGS] runs the test suite
       run_local.sh install            only makes the environment
The environment is made once, in .venv beside this script (or in $LANDMARKS_VENV). $PYTHON names another python3.11.
USAGE
}

# Installs where setup.py or pyproject.toml has changed since the last time, or nothing is installed yet. $1: "" or the extra "test".
install() {
  local wanted stamp="$venv/.landmarks-installed$1"
  wanted="$(cat "$here/setup.py" "$here/pyproject.toml" | cksum)"
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
  if [ ! -x "$venv/bin/python" ]; then
    echo "Making the environment in $venv"
    "${PYTHON:-$(command -v python3.11 || echo python3)}" -m venv "$venv"
  fi
  echo "Installing (a minute or two, once)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$here${1:+[$1]}"
  printf '%s\n' "$wanted" >"$stamp"
}

landmarks() { "$venv/bin/python" -m beam_pipeline "$@"; }

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  install) install ""; exit 0 ;;
  test)
    shift
    install test
    cd "$here"
    # A process that dies ends the run and is told of: xdist 3.8 waits for its replacement for ever. With -n 0 there
    # is one process, to look at output.
    exec "$venv/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@"
    ;;
esac

images=() labels="" queries=() truth="" output="" both=() rest=()
while [ $# -gt 0 ]; do
  case "$1" in
    --images | --queries)
      flag="$1"; shift
      while [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; do
        if [ "$flag" = --images ]; then images+=("$1"); else queries+=("$1"); fi
        shift
      done
      ;;
    --labels | --truth | --output)
      [ $# -ge 2 ] || { echo "run_local.sh: $1 needs a value" >&2; exit 2; }
      printf -v "${1#--}" '%s' "$2"; shift 2
      ;;
    --image_ids | --exclude)
      [ $# -ge 2 ] || { echo "run_local.sh: $1 needs a value" >&2; exit 2; }
      both+=("$1" "$2"); shift 2
      ;;
    *) rest+=("$1"); shift ;;
  esac
done

if [ ${#images[@]} -eq 0 ] && [ ${#queries[@]} -eq 0 ] && [ -z "$labels" ]; then
  install ""
  output="${output:-$here/demo}"
  landmarks demo --output "$output/data"
  images=("$output/data/index") labels="$output/data/labels.csv" queries=("$output/data/queries") truth="${truth:-$output/data/truth.csv}"
elif [ ${#images[@]} -eq 0 ] || [ ${#queries[@]} -eq 0 ] || [ -z "$labels" ]; then
  echo "run_local.sh: --images, --labels and --queries go together" >&2
  usage >&2
  exit 2
else
  install ""
  output="${output:-landmarks-output}"
fi

landmarks index --images "${images[@]}" --labels "$labels" --output "$output/index" ${both[@]+"${both[@]}"}
landmarks calibrate --index "$output/index"
landmarks recognize --images "${queries[@]}" --index "$output/index" --output "$output/run" --preset tuned ${truth:+--truth "$truth"} ${both[@]+"${both[@]}"} ${rest[@]+"${rest[@]}"}

landmarks report --run "$output/run" ${truth:+--truth "$truth"} --output "$output/report"

echo
echo "Report:      $output/report/index.html (opens in a browser)"
echo "Predictions: $output/run/predictions/*.parquet"
echo "Submission:  $output/run/submission.csv"
echo "Failures:    $output/run/failures/*.parquet (none where there is no such folder)"
[ -z "$truth" ] || echo "Metrics:     $output/run/metrics.json"
