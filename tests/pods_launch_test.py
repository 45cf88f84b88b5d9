# SPDX-License-Identifier: Apache-2.0
"""The launcher of examples/pods with scripts that do not train."""

import os
import signal
import subprocess
import sys
import time

import pytest
from support import source

LAUNCH = source.ROOT / "examples" / "pods" / "launch.py"
SECONDS = 60
# Ends by SIGTERM, and leaves a file then.
WAITS = """
import pathlib, signal, sys, time
folder, process = pathlib.Path(sys.argv[1]), sys.argv[-1]

def end(number, frame):
  (folder / f"ended{process}").touch()
  sys.exit(3)

signal.signal(signal.SIGTERM, end)
(folder / f"began{process}").touch()
time.sleep(600)
"""


def launched(folder, text, *options):
  script = folder / "script.py"
  script.write_text(text)
  words = [sys.executable, LAUNCH, *options, "--", script, folder]
  return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)


def files(folder, name, count):
  """Waits for the files that the processes make."""
  end = time.monotonic() + SECONDS
  while time.monotonic() < end:
    if len(list(folder.glob(f"{name}*"))) == count:
      return
    time.sleep(0.02)
  raise AssertionError(f"no {count} files {name}")


def test_all_processes_get_the_signal(tmp_path):
  process = launched(tmp_path, WAITS, "--processes=3")
  files(tmp_path, "began", 3)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=SECONDS)
  assert process.returncode == 128 + signal.SIGTERM
  files(tmp_path, "ended", 3)


def test_a_process_that_ignores_the_signal_is_killed(
  launch, monkeypatch, capfd
):
  monkeypatch.setattr(launch, "_GRACE_SECONDS", 0.1)
  words = "import signal, time; signal.signal(15, signal.SIG_IGN)\n"
  words += "print(flush=True); time.sleep(600)"
  process = subprocess.Popen(
    [sys.executable, "-c", words], stdout=subprocess.PIPE
  )
  process.stdout.readline()
  launch._stop([process], signal.SIGTERM)
  process.stdout.close()
  assert process.returncode == -signal.SIGKILL
  assert "killing a process that does not end" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux does this")
def test_all_processes_end_with_a_killed_launcher(tmp_path):
  process = launched(tmp_path, WAITS)
  files(tmp_path, "began", 2)
  process.kill()
  # The processes hold this pipe open until they end.
  process.communicate(timeout=SECONDS)
  assert process.returncode == -signal.SIGKILL
  assert not list(tmp_path.glob("ended*"))


@pytest.fixture
def launch():
  """The module, which sets handlers of signals."""
  before = {x: signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)}
  yield source.script(LAUNCH.parent, "launch")
  for number, handler in before.items():
    signal.signal(number, handler)


def test_signal_while_processes_are_started_again(
  launch, monkeypatch, tmp_path
):
  script = tmp_path / "script.py"
  # Fails at first, and then does not end by itself.
  script.write_text(
    "import pathlib, sys, time\n"
    "first = pathlib.Path(sys.argv[1])\n"
    "if not first.exists():\n"
    "  first.touch()\n"
    "  sys.exit(1)\n"
    "time.sleep(600)\n"
  )
  start, starts = launch._start, []

  def restart(*arguments):
    starts.append(arguments)
    if len(starts) == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    return start(*arguments)

  monkeypatch.setattr(launch, "_start", restart)
  words = [str(script), str(tmp_path / "first")]
  assert launch.launch(words, 1, 3) == 128 + signal.SIGTERM
  assert len(starts) == 2


@pytest.mark.parametrize(("code", "starts"), [(1, 3), (2, 1)])
def test_how_often_a_failure_is_repeated(code, starts, tmp_path):
  text = f"""
import pathlib, sys
with pathlib.Path(sys.argv[1], "starts").open("a") as file:
  file.write(".")
sys.exit({code})
"""
  process = launched(tmp_path, text, "--processes=1", "--restarts=2")
  process.communicate(timeout=SECONDS)
  assert process.returncode == code
  assert (tmp_path / "starts").read_text() == "." * starts


def test_arguments_of_the_script_are_kept(tmp_path):
  text = """
import pathlib, sys
pathlib.Path(sys.argv[1], "words").write_text(" ".join(sys.argv[2:4]))
"""
  script = tmp_path / "script.py"
  script.write_text(text)
  words = [sys.executable, LAUNCH, "--processes=1", "--", script, tmp_path]
  subprocess.run([*words, "--", "x"], check=True, timeout=SECONDS)
  assert (tmp_path / "words").read_text() == "-- x"


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--processes=0", "--", "x.py"], "--processes must be at least 1, got 0"),
    (["--restarts=-1", "--", "x.py"], "--restarts must be at least 0, got -1"),
    (["--"], "name the script to run after --"),
  ],
)
def test_arguments_that_are_invalid(options, message):
  words = [sys.executable, LAUNCH, *options]
  done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
  assert done.returncode == 2
  assert message in done.stderr
