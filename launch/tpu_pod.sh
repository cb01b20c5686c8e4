#!/usr/bin/env bash
# Trains on a TPU slice: the same command on every worker, all at once.
#
#   TPU=NAME ZONE=ZONE launch/tpu_pod.sh configs/X.py WORKDIR [FLAG ...]
#
# REPOSITORY is where it lies on the workers, set up as docs/pods.md says;
# WORKDIR is a path that all of them share, or in a bucket. The workers know of
# each other. Ctrl-C stops the run with a checkpoint; a connection that is lost
# does too. Ends with the exit code of the run.
set -uo pipefail
: "${TPU:?is the name of the TPU}" "${ZONE:?is the zone of the TPU}"
config=${1:?is the recipe} workdir=${2:?is the work directory}
shift 2
printf -v train ' %q' .venv/bin/python -m jamsface_jax.main \
  --distributed=on --config="$config" --workdir="$workdir" "$@"

on_machines() { # COMMAND
  # A terminal of its own (-tt): without one the run would not hear that the
  # connection is gone.
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --ssh-flag=-tt --command="cd ${REPOSITORY:-jamsface_jax} && { $1; }"
}
# shellcheck source=launch/relay.sh
source "$(dirname "${BASH_SOURCE[0]}")/relay.sh"

on_machines "$(starting "$train")" </dev/null &
await $!
