"""What this installation allows: the limits of specs, the quotas, and the machine that specs are checked against."""

import os
import sys
from pathlib import Path

from django.conf import settings

from projects.models import Project
from services import specs
from services.lifecycle import Quotas


def quotas() -> Quotas:
    """Return how many services may live in one project and on one host."""
    return Quotas(project=settings.ANDON_SERVICES_PER_PROJECT, host=settings.ANDON_SERVICES_PER_HOST)


def search_path() -> str:
    """Return the PATH that children get: ours without Andon's own virtual environment, which is not theirs to use."""
    own = os.path.realpath(Path(sys.prefix, "bin")) if sys.prefix != sys.base_prefix else ""
    parts = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(part for part in parts if part and os.path.realpath(part) != own) or os.defpath


def limits(project: Project) -> specs.Limits:
    """Return what a spec of this project may ask for."""
    return specs.Limits(
        executables=specs.EXECUTABLES | settings.ANDON_EXECUTABLES,
        trusted_dirs=specs.trusted_dirs(search_path()),
        roots=tuple(os.path.realpath(root) for root in settings.ANDON_WORKSPACE),
        default_cwd=str(Path(project.path)),
        health_hosts=settings.ANDON_HEALTH_HOSTS,
        denied_env=settings.ANDON_DENIED_ENV,
    )


def system() -> specs.Context:
    """Return this machine as specs are checked against it."""
    return specs.System(specs.trusted_dirs(search_path()))
