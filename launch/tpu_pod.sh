#!/usr/bin/env bash
# Trains on a TPU slice: the same command on every worker, all at once.
#
#   TPU=NAME ZONE=ZONE launch/tpu_pod.sh configs/X.py WORKDIR [FLAG ...]
#
# REPOSITORY is where it lies on the workers, set up as docs/pods.md says;
# WORKDIR is a path that all of them share. The workers know of each other.
set -euo pipefail
: "${TPU:?is the name of the TPU}" "${ZONE:?is the zone of the TPU}"
config=${1:?is the recipe} workdir=${2:?is the work directory}
shift 2
printf -v train ' %q' .venv/bin/python -m jamsface_jax.main \
  --config="$config" --workdir="$workdir" "$@"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd ${REPOSITORY:-jamsface_jax} && exec$train"
