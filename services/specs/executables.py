"""Which programs may be named. Policy, not a sandbox: `bash` is on the list."""

import re
from pathlib import PurePosixPath

from services.specs.context import Context
from services.specs.limits import Limits
from services.specs.values import is_storable

_SUFFIX = re.compile(r"\.(?:exe|cmd|bat|ps1|sh)\Z")


def is_allowed(cmd: str, limits: Limits, context: Context) -> bool:
    """Tell whether a command is a bare name on the allowlist, or an absolute path to such a program.

    A path's real path must lie directly in a trusted directory. So must the path itself, or else both ends bear
    allowed names: a link called `python3` in a stranger's directory must not run any other program.
    A bare name that is not installed is allowed: that shows when it is started.
    """
    if not is_storable(cmd):
        return False
    if not _is_listed(cmd, limits):
        return False
    if "/" not in cmd:
        return True
    real = context.which(cmd) if cmd.startswith("/") else None
    if real is None or str(PurePosixPath(real).parent) not in limits.trusted_dirs:
        return False
    return context.stat(str(PurePosixPath(cmd).parent)).real in limits.trusted_dirs or _is_listed(real, limits)


def _is_listed(path: str, limits: Limits) -> bool:
    name = path.rpartition("/")[2]
    # Beyond ASCII some letters have a lower case within it: the Kelvin sign is no k.
    return name.isascii() and _SUFFIX.sub("", name.lower()) in limits.executables
