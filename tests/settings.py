"""The settings of the tests: the real ones, on a home and a workspace of their own."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = False

# Never the home or the workspace of whoever runs the tests.
_scratch = Path(tempfile.mkdtemp(prefix="andon-tests-"))
atexit.register(shutil.rmtree, _scratch, ignore_errors=True)
for _name in [name for name in os.environ if name.startswith("ANDON_") and not name.startswith("ANDON_TEST_")]:
    del os.environ[_name]
os.environ["ANDON_HOME"] = str(_scratch / "home")
os.environ["ANDON_WORKSPACE"] = str(_scratch / "workspace")
os.environ["ANDON_NODE"] = "test-node"
(_scratch / "workspace").mkdir()
(_scratch / "home" / "static").mkdir(parents=True)

from config.settings import *  # noqa: E402, F403

# Programs that tests start read the real settings, and compile no module a second time: hundreds are started.
os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
