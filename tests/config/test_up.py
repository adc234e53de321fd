"""The parent of web and worker when the machine is short of what a start needs."""

import subprocess
import sys
from pathlib import Path

from config import up

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import io, os, sys, threading, time
from pathlib import Path
from config import up

folder = Path(sys.argv[1])
late, shown = folder / "late", io.StringIO()
up.BACKOFF_S = 0.02
refusals = 2


class Thread(threading.Thread):
    def start(self):
        global refusals
        if self.name == "unheard" or not refusals:
            return super().start()
        refusals -= 1
        raise RuntimeError("can't start new thread")


up.threading.Thread = Thread
children = [up.Child("web", [str(late)], dict(os.environ)), up.Child("worker", ["sleep", "600"], dict(os.environ))]
parent = up.Supervisor(children, up.Printer(shown))
run = Thread(target=parent.run, args=("", print), kwargs={"wait_ready": False}, name="unheard")
run.start()


def wait_for(what, found):
    deadline = time.monotonic() + 30
    while not found():
        assert run.is_alive(), f"up ended: {what}; {shown.getvalue()}"
        assert time.monotonic() < deadline, f"{what}; {shown.getvalue()}"
        time.sleep(0.01)


def is_heard(child):
    return child.reader is not None and child.process is not None and child.process.poll() is None


try:
    wait_for("a program that cannot be started is tried again", lambda: children[0].failures > 2)
    wait_for("the other one runs", lambda: is_heard(children[1]))
    whole = folder / "whole"
    whole.write_text("#!/bin/sh\\nexec sleep 600\\n")
    whole.chmod(0o700)
    whole.rename(late)
    wait_for("then it is started", lambda: is_heard(children[0]))
finally:
    parent.ask_stop()
    run.join(30)
assert not run.is_alive()
assert all(child.process.poll() is not None for child in children)
text = shown.getvalue()
assert "web could not be started ([Errno 2]" in text, text
assert "worker could not be started (can't start new thread)" in text, text
"""


def test_a_start_that_fails_is_tried_again_and_ends_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_back_off_stays_at_its_cap_however_often_it_failed(capsys):
    parent = up.Supervisor([], up.Printer(sys.stdout))
    child = up.Child("web", ["/nowhere/at/all"], {}, failures=5000)
    parent._keep(child, 100.0)
    assert 0.8 * up.BACKOFF_CAP_S <= child.start_again_at - 100.0 <= 1.2 * up.BACKOFF_CAP_S
    assert "could not be started" in capsys.readouterr().out
