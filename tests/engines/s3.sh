#!/usr/bin/env bash
# Runs everything in s3:// on a MinIO server of this machine and compares submission.csv with the local disk's; see README.md beside this file.
[ $# -eq 0 ] || { echo "usage: s3.sh" >&2; exit 2; }
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$here/stores.sh"

# The last commit of the repository: the module proxy does not have the releases, whose names are no versions of Go.
minio_version=v0.0.0-20260212201848-7aac2a2c5b7c

make_environment aws,test
go_tool minio "$minio_version" github.com/minio/minio
minio="$tool_path"
make_photographs "${IMAGES:-150}" "${QUERIES:-50}"

port="$(free_port)"
key=landmarks secret="$(head -c 16 /dev/urandom | sha256sum | cut -c1-32)"
MINIO_ROOT_USER="$key" MINIO_ROOT_PASSWORD="$secret" start minio "$minio" server --address "127.0.0.1:$port" --console-address "127.0.0.1:$(free_port)" "$work/minio"
wait_for_port "$port"
unset AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_PROFILE # only Beam's options hold
tool_environment=("AWS_ENDPOINT_URL=http://127.0.0.1:$port" "AWS_ACCESS_KEY_ID=$key" "AWS_SECRET_ACCESS_KEY=$secret" AWS_REGION=us-east-1)

tool upload s3://landmarks/suite "$work" # makes the bucket
try_suite LANDMARKS_TEST_S3=s3://landmarks/suite
try_store s3://landmarks/work "--s3_endpoint_url=http://127.0.0.1:$port" "--s3_access_key_id=$key" "--s3_secret_access_key=$secret" --s3_region_name=us-east-1
