#!/usr/bin/env bash
# Runs everything in gs:// on a fake-gcs-server of this machine and compares submission.csv with the local disk's; see README.md beside this file.
[ $# -eq 0 ] || { echo "usage: gcs.sh" >&2; exit 2; }
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$here/stores.sh"

make_environment gcp,test
go_tool fake-gcs-server v1.56.1 github.com/fsouza/fake-gcs-server
server="$tool_path"
make_photographs "${IMAGES:-150}" "${QUERIES:-50}"

port="$(free_port)"
start fake-gcs-server "$server" -scheme http -host 127.0.0.1 -port "$port" -public-host "127.0.0.1:$port" -external-url "http://127.0.0.1:$port" -backend memory
wait_for_port "$port"
front="$(free_port)"
start xml-uploads "$venv/bin/python" "$here/xml_uploads.py" "$front" "$port"
wait_for_port "$front"
export STORAGE_EMULATOR_HOST="http://127.0.0.1:$front" # no credentials are asked for
tool_environment=()

tool upload gs://landmarks/suite "$work" # makes the bucket
try_suite LANDMARKS_TEST_GS=gs://landmarks/suite
try_store gs://landmarks/work
