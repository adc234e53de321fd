from django.urls import path

from services.views import declaring, listing, loops, rollbacks, single, verbs

# No slug of a project has a tilde: what stands below it is never a service.
urlpatterns = [
    path("", listing.index, name="services"),
    path("new/", declaring.new, name="declare-service"),
    path("~/unclaimed/<str:agent>/discard/", listing.discard, name="discard-sidecar"),
    path("~/<int:pk>/", single.process, name="process"),
    path("~/<int:pk>/log", single.process_log, name="process-log"),
    path("~/<int:pk>/log-stream", single.process_stream, name="process-log-stream"),
    path("~/<int:pk>/<str:verb>/", verbs.process, name="process-verb"),
    path("<str:project>/<str:name>/", single.service, name="service"),
    path("<str:project>/<str:name>/log", single.service_log, name="service-log"),
    path("<str:project>/<str:name>/<str:verb>/", verbs.service, name="service-verb"),
]

# Hung under /projects/: what is done with a project's loop.
loop_patterns = [
    path("<str:slug>/start/", loops.start, name="loop-start"),
    path("<str:slug>/stop/", loops.stop, name="loop-stop"),
    path("<str:slug>/budget/", loops.set_budget, name="loop-budget"),
    path("<str:slug>/loop/", loops.configure, name="loop-configure"),
    path("<str:slug>/stories/<path:key>/requeue/", loops.requeue, name="story-requeue"),
    path("<str:slug>/rollback/", rollbacks.preview, name="rollback"),
    path("<str:slug>/rollback/confirm/", rollbacks.confirm, name="rollback-confirm"),
    path("<str:slug>/rollback/<int:pk>/", rollbacks.done, name="rollback-done"),
    path("<str:slug>/rollback/<int:pk>/force/", rollbacks.force, name="rollback-force"),
]
