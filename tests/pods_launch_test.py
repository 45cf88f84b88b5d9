# SPDX-License-Identifier: Apache-2.0
"""The launcher of examples/pods with scripts that do not train."""

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


def test_a_process_that_ignores_the_signal_is_killed(monkeypatch, capfd):
  launch = source.script(LAUNCH.parent, "launch")
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


# The launcher gets SIGTERM at a chosen occurrence of an event.
AT_EVENT = """
import signal, sys
chosen, left = sys.argv[1], int(sys.argv[2])

def hook(event, arguments):
  global left
  if event == chosen:
    left -= 1
    if left == 0:
      signal.raise_signal(signal.SIGTERM)

sys.path.insert(0, sys.argv[3])
import launch
sys.addaudithook(hook)
sys.exit(launch.launch(sys.argv[4:], 2, 3))
"""
# The first process fails at first. Others would leave a file after 30 seconds.
FAILS_ONCE = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
if sys.argv[-1] == "--process=0" and not (folder / "failed").exists():
  (folder / "failed").touch()
  sys.exit(1)
time.sleep(30)
(folder / "waited").touch()
"""


@pytest.mark.parametrize(
  ("event", "number"),
  [
    ("subprocess.Popen", 2),  # While the processes are started,
    ("os.kill", 1),  # while they are stopped after the failure,
    ("subprocess.Popen", 3),  # and while they are started again.
  ],
)
def test_signal_at_any_moment(event, number, tmp_path):
  script = tmp_path / "script.py"
  script.write_text(FAILS_ONCE)
  words = [event, str(number), LAUNCH.parent, script, tmp_path]
  done = subprocess.run(
    [sys.executable, "-c", AT_EVENT, *words],
    check=False,
    stderr=subprocess.PIPE,
    text=True,
    timeout=SECONDS,
  )
  assert done.returncode == 128 + signal.SIGTERM, done.stderr
  assert not (tmp_path / "waited").exists()


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
