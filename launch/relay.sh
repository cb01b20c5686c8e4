# Sourced by tpu_pod.sh and ssh.sh, not run: starts processes on other machines,
# tells them to stop when the script is told to, and waits for them.
#
# Ctrl-C, SIGTERM and SIGHUP become SIGTERM on every machine: the run writes a
# checkpoint and ends. A second one kills it. The script that sources this
# defines `on_machines COMMAND`, which runs a command in the repository on each.

# Groups of their own for what runs in the background: Ctrl-C in this terminal
# must not cut the connections, or nobody would hear how the run ended.
set -m
asked=''
# Where each machine notes which processes are of this launch.
mark="/tmp/jamsface-launch-$(date +%s)-$$"

# Prints the command with which a machine starts TRAIN. The shell stays: for what
# dies by a signal without one, ssh and gcloud would say that the connection was
# lost, and gcloud would start it again.
starting() { # TRAIN
  echo "$1 & echo \$! >>$mark; [ ! -e $mark.stop ] || kill \$!; wait \$!"
}

relay() { # SIGNAL
  local how=TERM
  if [[ $asked ]]; then
    how=KILL
  else
    echo "$1: the run writes a checkpoint and stops; again kills it." >&2
  fi
  asked=${asked:-$1}
  # The file is for machines that have not started yet.
  on_machines "touch $mark.stop; kill -s $how \$(cat $mark)" \
    >/dev/null 2>&1 </dev/null &
}
for signal in INT TERM HUP; do
  # shellcheck disable=SC2064
  trap "relay $signal" "$signal"
done

# Waits for jobs; returns the exit code of the first that failed.
await() { # PID ...
  local pid code=0 one
  for pid; do
    while kill -0 "$pid" 2>/dev/null; do
      wait "$pid" # A signal ends it too early.
    done
    wait "$pid"
    one=$?
    [[ $code != 0 ]] || code=$one
  done
  # A person's wish is not to be repeated, unlike the end of a machine.
  if [[ $asked == INT && $code == 75 ]]; then
    code=130
  fi
  return "$code"
}
