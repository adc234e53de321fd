"""Save Andon in one file and bring it back (`manage.py backup`, `manage.py restore`)."""

from config.backup.archive import Refused
from config.backup.restoring import restore
from config.backup.saving import backup

__all__ = ["Refused", "backup", "restore"]
