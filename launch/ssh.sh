#!/usr/bin/env bash
# Trains on machines that SSH reaches: a process on each, with all its devices.
#
#   HOSTS="gpu1 gpu2" launch/ssh.sh configs/X.py WORKDIR [FLAG ...]
#
# REPOSITORY is where it lies on all of them, WORKDIR a path that they share, or
# in a bucket. The first host must be reached by the others at PORT. Where Open
# MPI is installed, `mpirun --host gpu1,gpu2 .venv/bin/python -m
# jamsface_jax.main ...` does the same. Ctrl-C stops the run with a checkpoint; a
# connection that is lost does too. Ends with the exit code of the first that
# failed.
set -uo pipefail
read -ra hosts <<<"${HOSTS:?are the hosts, space between}"
config=${1:?is the recipe} workdir=${2:?is the work directory}
shift 2

on_machine() { # HOST COMMAND
  # A terminal of its own (-tt): without one the run would not hear that the
  # connection is gone.
  ssh -tt "$1" "cd ${REPOSITORY:-jamsface_jax} && { $2; }" </dev/null
}
on_machines() { # COMMAND
  local host
  for host in "${hosts[@]}"; do
    on_machine "$host" "$1" &
  done
  wait
}
# shellcheck source=launch/relay.sh
source "$(dirname "${BASH_SOURCE[0]}")/relay.sh"

pids=()
for index in "${!hosts[@]}"; do
  printf -v train ' %q' .venv/bin/python -m jamsface_jax.main \
    --config="$config" --workdir="$workdir" \
    --coordinator="${hosts[0]}:${PORT:-8476}" \
    --num_processes="${#hosts[@]}" --process_id="$index" "$@"
  on_machine "${hosts[index]}" "$(starting "$train")" &
  pids+=($!)
done
await "${pids[@]}"
