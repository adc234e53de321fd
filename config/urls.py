from django.contrib import admin
from django.urls import include, path

from config.api import api
from config.views import board, cleaning, costs, errors, finding, notices, probes, settings, signing
from kanban.urls import run_patterns
from projects.urls import journal_patterns
from services.urls import loop_patterns

urlpatterns = [
    path("", board.home, name="home"),
    path("projects/rescan", board.rescan, name="rescan"),
    path("projects/", include(loop_patterns)),
    path("projects/", include("projects.urls")),
    path("services/", include("services.urls")),
    path("kanban/", include("kanban.urls")),
    path("runs/", include(run_patterns)),
    path("", include(journal_patterns)),
    path("costs/", costs.report, name="costs"),
    path("costs/export.csv", costs.export, name="costs-export"),
    path("events/", board.events, name="events"),
    path("events/<int:number>/", board.event, name="event"),
    path("system/", board.system, name="system"),
    path("system/clean-up/", cleaning.clean_up, name="clean-up"),
    path("search/", finding.search, name="search"),
    path("help/", finding.guide, name="help"),
    path("settings/", settings.settings, name="settings"),
    path("settings/password/", signing.set_password, name="set-password"),
    path("settings/tokens/", settings.create_token, name="create-token"),
    path("settings/tokens/<int:number>/revoke/", settings.revoke_token, name="revoke-token"),
    path("settings/notices/", notices.listing, name="notices"),
    path("settings/notices/<int:number>/", notices.single, name="notice"),
    path("settings/notices/<int:number>/delete/", notices.delete, name="notice-delete"),
    path("settings/notices/<int:number>/<slug:verb>/", notices.act, name="notice-verb"),
    path("settings/notices/<int:number>/again/<int:delivery>/", notices.send_again, name="notice-again"),
    path("login/", signing.sign_in, name="login"),
    path("login/link/<str:raw>/", signing.use_link, name="sign-in-link"),
    path("logout/", signing.sign_out, name="logout"),
    path("admin/", admin.site.urls),
    path("api/", api.urls),
    path("healthz", probes.healthz, name="healthz"),
    path("readyz", probes.readyz, name="readyz"),
    path("metrics", probes.metrics, name="metrics"),
    path("favicon.ico", probes.favicon, name="favicon"),
]

handler400 = errors.bad_request
handler403 = errors.forbidden
handler404 = errors.not_found
handler500 = errors.internal
