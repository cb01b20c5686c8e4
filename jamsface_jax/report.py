"""Writes W/report.html: one page that shows a run, or compares several.

  python -m jamsface_jax.report --workdir=W
  python -m jamsface_jax.report --workdir=W1 --workdir=W2 --output=compared.html

The page needs nothing but itself: no network, no other file. A training run
writes it at each evaluation and at its end; this command writes it again, also
while the run goes on. Images are shown only of data sets that are synthetic, or
of all with --faces.
"""

import argparse

from jamsface_jax import shell
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.reports.page import write
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory, RunFile
from jamsface_jax.storage.write_error import write_error


def main() -> int:
  """Reads the flags and writes the page."""
  parser = argparse.ArgumentParser(
    prog=shell.name("jamsface_jax.report"),
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add(
    "--workdir",
    action="append",
    default=[],
    metavar="W",
    help="work directory of a run; several to compare them",
  )
  add("workdirs", nargs="*", metavar="W", help="the same, without the flag")
  add("--output", help="the file; default: report.html in W, for one W")
  add(
    "--faces",
    action="store_true",
    help="show images of data sets that are not synthetic too",
  )
  arguments = parser.parse_args()
  workdirs = arguments.workdir + arguments.workdirs
  if not workdirs:
    raise InputError(
      "--workdir is needed: give the work directory of a run, or of several."
    )
  if not arguments.output and len(workdirs) > 1:
    raise InputError(
      "--output is needed to compare several runs: give a file such as"
      " --output=compared.html."
    )
  runs = [RunDirectory(workdir) for workdir in workdirs]
  for run in runs:
    read_settings(run)  # Nothing is locked in a directory of another kind.
  output = (
    RunFile.at(arguments.output, "--output")
    if arguments.output
    else runs[0].report
  )
  with output.held("--output"):
    try:
      write(runs, output, every_face=arguments.faces)
    except OSError as error:
      raise write_error("--output", output.path, error) from None
  print(f"report: {output.path}")
  return 0


if __name__ == "__main__":
  run_command(main)
