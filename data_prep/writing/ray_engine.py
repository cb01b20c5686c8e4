"""Runs tasks on a Ray cluster, or on a small one that it starts here.

Ray is optional: `pip install jamsface-jax[ray]`. Which cluster is Ray's
convention: that of RAY_ADDRESS, else the one that this machine belongs to.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from jamsface_jax import interruption
from jamsface_jax.errors import InputError, RunError, one_line

Task = TypeVar("Task")
Result = TypeVar("Result")

_WAITING = 2  # Tasks in Ray's hands for each that can run.


def run(
  function: Callable[[Task], Result], tasks: Iterable[Task], threads: int
) -> Iterator[Result]:
  """Yields the results of tasks as they come, in any order.

  A task whose machine is lost is done again by another: that must do no harm.

  Args:
    function: does a task; it and the task can be pickled.
    tasks: taken as fast as they are done; `str` names one in messages.
    threads: cores that a task needs.

  Raises:
    InputError: Ray is missing or cannot give what is asked for, or a task
      raised it.
    RunError: a task failed otherwise.
  """
  try:
    with interruption.postponed():
      import ray
  except ImportError:
    raise InputError(
      "--engine=ray needs Ray, which is not installed: run"
      " pip install 'jamsface-jax[ray]'."
    ) from None
  # A conversion has nothing to report to anybody.
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  try:
    ray.init(
      include_dashboard=False,
      log_to_driver=False,
      logging_level=logging.ERROR,
    )
  except (ConnectionError, ValueError, RuntimeError) as error:
    raise InputError(
      f"--engine=ray cannot reach a cluster ({one_line(error)}): correct"
      " RAY_ADDRESS, and RAY_AUTH_TOKEN if the cluster asks for one, or unset"
      " them to use this machine alone."
    ) from None
  try:
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes()]
    if threads > max(cores):
      raise InputError(
        f"--threads={threads} is more than any machine of the cluster has"
        f" ({max(cores)} cores): give fewer."
      )
    remote = ray.remote(num_cpus=threads)(function)
    most = _WAITING * sum(number // threads for number in cores)
    begun: dict[ray.ObjectRef, Task] = {}
    for task in tasks:
      if len(begun) >= most:
        yield _next(begun)
      begun[remote.remote(task)] = task
    while begun:
      yield _next(begun)
  finally:
    ray.shutdown()


def _next(begun: dict[Any, Any]) -> Any:
  """Waits for any of the tasks, and takes it out."""
  import ray
  import ray.exceptions

  [done], _ = ray.wait(list(begun), num_returns=1)
  task = begun.pop(done)
  try:
    return ray.get(done)
  except ray.exceptions.RayError as error:
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, InputError | RunError):
      raise cause from None
    raise RunError(
      f"{task} failed on its machine ({type(cause).__name__}:"
      f" {one_line(cause)}): mend that and start the same command again, which"
      " keeps the finished shards."
    ) from None
