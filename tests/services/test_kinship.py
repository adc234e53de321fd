"""Who is whose among the processes of the real machine."""

import os
import subprocess

from services import kinship
from services.processes import identify
from tests.running import wait_for


def test_the_dead_are_nobody() -> None:
    zombie = subprocess.Popen(["true"])
    wait_for(lambda: zombie.pid not in kinship.everybody(), 30)
    assert zombie.returncode is None
    assert {os.getpid(), os.getppid()} <= set(kinship.everybody())
    zombie.wait()


def test_a_line_goes_up_to_the_first() -> None:
    assert list(kinship.line(kinship.everybody(), os.getpid()))[:2] == [os.getpid(), os.getppid()]
    assert list(kinship.line({}, os.getpid())) == []


def test_nobody_below_one_that_is_not_allowed() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 300 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        below = int(shell.stdout.readline())
        table = kinship.everybody()
        named = {pid: found for pid in (shell.pid, below) if (found := identify(pid, "node-a"))}
        try:
            assert set(kinship.descendants(table, [shell.pid], named)) == {shell.pid, below}
            del named[below]
            assert set(kinship.descendants(table, [shell.pid], named)) == {shell.pid}
        finally:
            os.kill(below, 9)
