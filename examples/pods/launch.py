# SPDX-License-Identifier: Apache-2.0
"""Starts a training script in several processes on one machine.

A pod runs one process on each host. This launcher does the same on one machine.
Use it to test a script before a run on a pod: python examples/pods/launch.py
--processes 2 -- examples/pods/train_lm.py --mesh data=2

If a process fails, the launcher stops the other processes and starts all of
them again. The script continues from its last checkpoint. SIGINT and SIGTERM
are passed on to all processes. If SIGKILL ends the launcher, Linux kills the
processes too. On other systems they keep running.
"""

import argparse
import ctypes
import signal
import socket
import subprocess
import sys
import time

# Time between SIGTERM or SIGINT and SIGKILL.
_GRACE_SECONDS = 20.0
_POLL_SECONDS = 0.2
# The exit code of a script with invalid options, or whose training diverged.
_USELESS_TO_REPEAT = 2
_LINUX = sys.platform == "linux"
# Loaded here, because a new process must do little before it runs the script.
_LIBC = ctypes.CDLL(None) if _LINUX else None
_PR_SET_PDEATHSIG = 1


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


def _end_with_launcher() -> None:
  """Asks Linux to kill this process when the launcher ends."""
  if _LIBC is not None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _start(script: list[str], processes: int) -> list[subprocess.Popen]:
  coordinator = f"localhost:{_free_port()}"
  return [
    subprocess.Popen(
      [
        sys.executable,
        *script,
        f"--coordinator={coordinator}",
        f"--processes={processes}",
        f"--process={number}",
      ],
      # Two trainings would otherwise write the same checkpoints.
      preexec_fn=_end_with_launcher if _LINUX else None,
    )
    for number in range(processes)
  ]


def _stop(running: list[subprocess.Popen], number: int) -> None:
  """Sends a signal to all processes, and kills those that do not end."""
  for process in running:
    if process.poll() is None:
      process.send_signal(number)
  end = time.monotonic() + _GRACE_SECONDS
  for process in running:
    try:
      process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
      print("launch: killing a process that does not end", file=sys.stderr)
      process.kill()
      process.wait()


def _wait(running: list[subprocess.Popen], stopped_by: list[int]) -> list[int]:
  """Waits until all processes end, one fails, or a signal has come."""
  while True:
    codes = [process.poll() for process in running]
    if any(codes) or None not in codes or stopped_by:
      return [code for code in codes if code is not None]
    time.sleep(_POLL_SECONDS)


def launch(script: list[str], processes: int, restarts: int) -> int:
  """Runs a script in several processes until it ends.

  Args:
    script: The script and its arguments. It must take ``--coordinator``,
      ``--processes`` and ``--process``.
    processes: The number of processes.
    restarts: How often the processes are started again after a failure.

  Returns:
    The exit code: 0 if all processes ended without an error.
  """
  # The loop passes the signal on: it may come while processes are started.
  stopped_by: list[int] = []
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: stopped_by.append(number))
  for attempt in range(restarts + 1):
    running = _start(script, processes)
    codes = _wait(running, stopped_by)
    if not any(codes) and not stopped_by:
      return 0
    if not stopped_by:
      failed = next(code for code in codes if code)
      print(f"launch: a process ended with exit code {failed}", file=sys.stderr)
      # SIGKILL, because the other processes wait for the failed one.
      for process in running:
        process.kill()
        process.wait()
      if failed == _USELESS_TO_REPEAT:
        return failed
    if stopped_by:
      _stop(running, stopped_by[0])
      return 128 + stopped_by[0]
    if attempt < restarts:
      print("launch: starting all processes again", file=sys.stderr)
  return 1


def main() -> int:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--processes",
    type=int,
    default=2,
    metavar="N",
    help="the number of processes; default: 2",
  )
  parser.add_argument(
    "--restarts",
    type=int,
    default=3,
    metavar="N",
    help="how often all processes are started again; default: 3",
  )
  parser.add_argument(
    "script",
    nargs=argparse.REMAINDER,
    help="-- and then the script with its arguments",
  )
  arguments = parser.parse_args()
  if arguments.processes < 1:
    parser.error(f"--processes must be at least 1, got {arguments.processes}")
  if arguments.restarts < 0:
    parser.error(f"--restarts must be at least 0, got {arguments.restarts}")
  script = arguments.script
  if script[:1] == ["--"]:
    script = script[1:]
  if not script:
    parser.error("name the script to run after --")
  return launch(script, arguments.processes, arguments.restarts)


if __name__ == "__main__":
  sys.exit(main())
