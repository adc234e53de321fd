from django.apps import AppConfig
from django.contrib.admin import apps as admin_apps


class AndonConfig(AppConfig):
    name = "config"
    default = True

    def ready(self) -> None:
        from config import checks  # noqa: F401 (registers the system checks)
        from projects import keeping

        keeping.live_streams.append(_live_streams)


def _live_streams() -> set[str]:
    from config.queries import live_streams

    return live_streams()


class AndonAdminConfig(admin_apps.AdminConfig):
    """Django's admin under our site class: same sign-in page and the same doors."""

    default = False
    default_site = "config.admin.AndonAdminSite"
