"""What a killed worker leaves behind is `up`'s to reap."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import os, subprocess, time
from config.parent import become_reaper, reap_orphans

become_reaper()
own = subprocess.Popen(["true"])
middle = subprocess.Popen(["sh", "-c", "(sleep 0.2; exit 7) & echo $!"], stdout=subprocess.PIPE, text=True)
orphan = int(middle.communicate()[0])
os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)
assert reap_orphans({own.pid}) == 0, "somebody else's child"
assert own.wait() == 0, "its owner still hears its code"
deadline = time.monotonic() + 20
while not reap_orphans(set()):
    assert time.monotonic() < deadline, "the orphan never came to us"
    time.sleep(0.02)
assert not os.path.exists(f"/proc/{orphan}")
assert reap_orphans(set()) == 0
"""


def test_orphans_are_reaped_and_children_of_others_are_not():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
