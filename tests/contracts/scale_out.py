"""The other half: the same suite on PostgreSQL and Redis, under coverage; in three parts that run beside each other."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contracts.tracing import TRACED

ROOT = Path(__file__).resolve().parents[2]
DATABASE_URL = os.environ.get("ANDON_TEST_DATABASE_URL", "postgres://postgres@127.0.0.1:5432/postgres")
REDIS_URL = os.environ.get("ANDON_TEST_REDIS_URL", "redis://127.0.0.1:6379/9")


def need_servers() -> None:
    """Skip where PostgreSQL or Redis does not answer."""
    import psycopg
    import redis

    try:
        psycopg.connect(DATABASE_URL, connect_timeout=3).close()
        redis.Redis.from_url(REDIS_URL, socket_timeout=3).ping()
    except (psycopg.OperationalError, redis.RedisError) as error:
        pytest.skip(
            f"PostgreSQL and Redis do not both answer ({str(error).splitlines()[0]}): apt-get install postgresql "
            "redis-server, or name them in ANDON_TEST_DATABASE_URL and ANDON_TEST_REDIS_URL; .ci/run does it for you"
        )


def run(name: str, words: list[str], whole: tuple[str, ...], by: tuple[str, ...], folder: Path, least: int) -> str:
    """Run a part of the suite on a database of this name and return its closing line.

    Asserts that it passes, that at least so many tests did, and that the tests whose ids begin with `by` walk every
    branch of the files `whole`.
    """
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "ANDON_HOME"))},
        "DATABASE_URL": f"{DATABASE_URL.rpartition('/')[0]}/{name}",
        "REDIS_URL": REDIS_URL,
        # Nothing of a test need outlive the machine.
        "PGOPTIONS": "-c synchronous_commit=off",
        "COVERAGE_FILE": str(folder / "coverage"),
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        TRACED: ":".join(by),
    }
    options = [
        "-p",
        "tests.contracts.tracing",
        "-n",
        "0",
        "-q",
        "--create-db",
        "-m",
        "not static and not pure and not once and not browser",
        "--basetemp",
        str(folder / "t"),
    ]
    rules = folder / "coveragerc"
    included = "".join(f"\n    {place}{'*' if place.endswith('/') else ''}" for place in whole)
    rules.write_text(f"[run]\nbranch = True\ninclude ={included}\n")
    done = subprocess.run(
        [sys.executable, "-m", "coverage", "run", f"--rcfile={rules}", "-m", "pytest", *options, *words],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    closing = done.stdout.rstrip().splitlines()[-1]
    again = [line for line in done.stdout.splitlines() if line.startswith("RERUN")]
    passed = re.search(r"(\d+) passed", closing)
    assert passed is not None, closing
    assert int(passed[1]) > least, closing
    report = folder / "coverage.json"
    subprocess.run(
        [sys.executable, "-m", "coverage", "json", f"--rcfile={rules}", "-q", "-o", str(report)],
        cwd=ROOT,
        env=env,
        check=True,
    )
    measured = json.loads(report.read_text())
    found = {path: about for path, about in measured["files"].items() if path.startswith(whole)}
    assert [place for place in whole if not any(path.startswith(place) for path in found)] == []
    holes = {
        path: about["missing_lines"] or about["missing_branches"]
        for path, about in found.items()
        if about["summary"]["percent_covered"] < 100
    }
    assert holes == {}, f"lines or branches that no test walks: {holes}"
    return "\n".join([f"PostgreSQL + Redis: {closing.strip('= ')}", *again])
