#!/usr/bin/env bash
# Trains on machines that SSH reaches: a process on each, with all its devices.
#
#   HOSTS="gpu1 gpu2" launch/ssh.sh configs/X.py WORKDIR [FLAG ...]
#
# REPOSITORY is where it lies on all of them, WORKDIR a path that they share. The
# first host must be reached by the others at PORT. Where Open MPI is installed,
# `mpirun --host gpu1,gpu2 .venv/bin/python -m jamsface_jax.main ...` does the
# same. Ends with the exit code of the first that failed.
set -euo pipefail
read -ra hosts <<<"${HOSTS:?are the hosts, space between}"
config=${1:?is the recipe} workdir=${2:?is the work directory}
shift 2
pids=()
for index in "${!hosts[@]}"; do
  printf -v train ' %q' .venv/bin/python -m jamsface_jax.main \
    --config="$config" --workdir="$workdir" \
    --coordinator="${hosts[0]}:${PORT:-8476}" \
    --num_processes="${#hosts[@]}" --process_id="$index" "$@"
  # A terminal of its own: when this script is stopped, so is the far process.
  ssh -tt "${hosts[index]}" "cd ${REPOSITORY:-jamsface_jax} && exec$train" \
    </dev/null &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' INT TERM
code=0
for pid in "${pids[@]}"; do
  wait "$pid" || { failed=$?; [[ $code != 0 ]] || code=$failed; }
done
exit "$code"
