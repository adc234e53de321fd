"""Django's admin as the repair bench: behind our door, for admins only."""

from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

from projects.states import Role


class AndonAdminSite(AdminSite):
    site_header = "Andon repairs"
    site_title = "Andon"
    index_title = "What can be repaired"
    site_url = "/"

    def has_permission(self, request: HttpRequest) -> bool:
        identity = getattr(request, "identity", None)
        return identity is not None and identity.may(Role.ADMIN)

    def login(self, request: HttpRequest, extra_context: object = None) -> HttpResponse:
        """There is one sign-in page, the one with the rate limit; whoever comes here is signed in already."""
        return HttpResponseRedirect("/admin/")
