"""Which environment keys a spec may set: denied by name, for the threat is leaked credentials and loader tricks."""

import itertools
import re
from collections.abc import Iterable

SHAPE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

DENIED = (
    *("PATH", "LD_*", "DYLD_*", "NODE_OPTIONS", "PYTHON*", "BASH_ENV", "ENV", "PERL5OPT", "RUBYOPT"),
    *("JAVA_TOOL_OPTIONS", "GIT_*", "AWS_*", "AZURE_*", "GCP_*", "GOOGLE_APPLICATION_CREDENTIALS", "GH_TOKEN"),
    *("GITHUB_TOKEN", "OPENAI_*", "ANTHROPIC_*", "COPILOT_*", "DOCKER_AUTH*", "NPM_TOKEN"),
)
DENIED_SEGMENTS = {"SECRET", "TOKEN", "APIKEY", "PASSWORD", "PASSWD", "PRIVKEY", "CREDENTIALS", "AUTH", "PAT"}
DENIED_PAIRS = {("API", "KEY"), ("PRIVATE", "KEY")}
EXEMPT = {"AWS_REGION", "AWS_DEFAULT_REGION", "AZURE_REGION", "GCP_REGION", "AWS_PROFILE"}


def is_denied(key: str, more: Iterable[str] = ()) -> bool:
    """Tell whether a key is refused, without regard to case; `more` are a project's names and prefixes (`X_*`).

    The exempt keys are so only as written, and not from what a project adds.
    """
    upper = key.upper()
    if _matches(upper, more):
        return True
    if key in EXEMPT:
        return False
    segments = upper.split("_")
    return (
        _matches(upper, DENIED)
        or not DENIED_SEGMENTS.isdisjoint(segments)
        or not DENIED_PAIRS.isdisjoint(itertools.pairwise(segments))
    )


def _matches(upper: str, patterns: Iterable[str]) -> bool:
    return any(
        upper.startswith(pattern[:-1].upper()) if pattern.endswith("*") else upper == pattern.upper()
        for pattern in patterns
    )
