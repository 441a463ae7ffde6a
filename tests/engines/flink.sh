#!/usr/bin/env bash
# Runs index and recognize on a Flink cluster and compares submission.csv with the local runner's; see README.md beside this file.
case "${1:-}" in "" | --kill) ;; *) echo "usage: flink.sh [--kill]" >&2; exit 2 ;; esac
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

make_environment
beam="$("$venv/bin/python" -c 'from apache_beam.version import __version__; print(__version__)')"
# The newest Flink that this Beam has a job server for.
flink="$("$venv/bin/python" -c 'from apache_beam.options.pipeline_options import FlinkRunnerOptions as o; print(o.PUBLISHED_FLINK_VERSIONS[-1])')"
home="$engines/flink-$flink/pyflink"
server="${FLINK_JOB_SERVER:-$engines/beam-runners-flink-$flink-job-server-$beam.jar}"
if [ ! -f "$server" ]; then
  say "fetching Beam's job server for Flink $flink"
  mvn -q -B dependency:copy "-Dartifact=org.apache.beam:beam-runners-flink-$flink-job-server:$beam" "-DoutputDirectory=$engines" ||
    { echo "Maven has no job server of Beam $beam for Flink $flink; FLINK_JOB_SERVER may name its jar" >&2; exit 1; }
fi
if [ ! -d "$home" ]; then
  say "fetching Flink $flink"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$engines/flink-$flink" "apache-flink-libraries==$flink.*"
fi

rest="$(free_port)" rpc="$(free_port)" port="$(free_port)"
cat >"$work/config.yaml" <<YAML
jobmanager.rpc.address: localhost
jobmanager.rpc.port: $rpc
rest.address: localhost
rest.port: $rest
blob.storage.directory: $work
io.tmp.dirs: $work
taskmanager.host: localhost
taskmanager.numberOfTaskSlots: 1
taskmanager.cpu.cores: 1
taskmanager.memory.framework.heap.size: 128m
taskmanager.memory.framework.off-heap.size: 128m
taskmanager.memory.task.heap.size: 512m
taskmanager.memory.task.off-heap.size: 0
taskmanager.memory.managed.size: 128m
taskmanager.memory.network.min: 64m
taskmanager.memory.network.max: 64m
taskmanager.memory.jvm-metaspace.size: 256m
taskmanager.memory.jvm-overhead.min: 192m
taskmanager.memory.jvm-overhead.max: 192m
heartbeat.interval: 1000
heartbeat.timeout: 10000
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 10
restart-strategy.fixed-delay.delay: 5 s
YAML
opens="$(printf -- '--add-opens=java.base/%s=ALL-UNNAMED ' java.{io,lang,lang.reflect,math,net,nio,text,time,util,util.concurrent{,.atomic,.locks}} sun.nio.ch)"
export JDK_JAVA_OPTIONS="$opens" # Flink's serializers look into Java's own classes

# start_flink NAME CLASS [JAVA_OPTION...]
start_flink() {
  local name="$1" class="$2"
  shift 2
  start "$name" java -Xmx1g "$@" -cp "$home/lib/*" "org.apache.flink.runtime.$class" --configDir "$work"
}

# start_task_manager N: with a worker pool of its own; their process groups are then in ${groups[N]}. On a cluster each task manager finds
# its pool as localhost; here all share a machine, so each has a table of its own of where the host "python-workers" is.
start_task_manager() {
  printf '127.0.0.1 localhost %s\n127.0.0.%s python-workers\n' "$(hostname)" "$1" >"$work/hosts-$1"
  PATH="$venv/bin:$PATH" start "workers-$1" "$venv/bin/python" "$here/worker_pool.py" "127.0.0.$1:$port"
  groups[$1]=$!
  start_flink "task-manager-$1" taskexecutor.TaskManagerRunner "-Djdk.net.hosts.file=$work/hosts-$1"
  groups[$1]+=" $!"
}

# wait_for_task_managers N: until as many are registered; fails after five minutes.
wait_for_task_managers() {
  for _ in $(seq 600); do
    if "$venv/bin/python" - "http://localhost:$rest/overview" "$1" 2>/dev/null <<'PYTHON'
import json, sys, urllib.request
sys.exit(json.load(urllib.request.urlopen(sys.argv[1]))["taskmanagers"] != int(sys.argv[2]))
PYTHON
    then return; fi
    sleep 0.5
  done
  echo "$1 task managers are wanted, and the cluster has others" >&2
  return 1
}

make_photographs "${IMAGES:-200}" "${QUERIES:-100}"

say "the local runner, two processes"
run_both "$work/local" --direct_num_workers=2 --direct_running_mode=multi_processing

say "Flink $flink: a job manager, two task managers, a worker pool for each"
groups=()
start_flink job-manager entrypoint.StandaloneSessionClusterEntrypoint
start_task_manager 1
start_task_manager 2
wait_for_task_managers 2
options=(--runner=FlinkRunner "--flink_master=localhost:$rest" "--flink_version=$flink" "--flink_job_server_jar=$server"
  --parallelism=2 --environment_type=EXTERNAL "--environment_config=python-workers:$port")

if [ "${1:-}" ]; then
  start index "$venv/bin/landmarks" index --images "@$work/index.txt" --labels "$work/labels.csv" --output "$work/flink/index" "${options[@]}"
  job=$!
  # shellcheck disable=SC2086 # two groups
  kill_after 5 "$work/flink/index" "$job" ${groups[1]}
  echo "task manager 1 and its worker pool are gone, as with their machine; another takes their place"
  start_task_manager 3
  wait "$job" && code=0 || code=$?
  tail -n 5 "$work/index.log"
  echo "the job ended with $code: $([ "$code" -eq 0 ] && echo "it has recovered" || echo "the same command again")"
  wait_for_task_managers 2
fi
run_both "$work/flink" "${options[@]}"

same_bytes "$work/local/run/submission.csv" "$work/flink/run/submission.csv"
