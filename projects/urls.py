from django.urls import path

from projects import views
from projects.views import journals

urlpatterns = [
    path("", views.index, name="projects"),
    path("<str:slug>/", views.project, name="project"),
    path("<str:slug>/history/", journals.history, name="history"),
    path("<str:slug>/stories/<path:key>/", views.story, name="story"),
    path("<str:slug>/iterations/", views.iterations, name="iterations"),
    path("<str:slug>/iterations/<int:number>/", views.iteration, name="iteration"),
    path("<str:slug>/iterations/<int:number>/log", views.iteration_log, name="iteration-log"),
]

# Beside the projects: sessions are of none.
journal_patterns = [
    path("sessions/", journals.index, name="sessions"),
    path("sessions/<str:session_id>/", journals.session, name="session"),
    path("sessions/<str:session_id>/delete/", journals.delete_session, name="delete-session"),
    path("audit/", journals.audit, name="audit"),
    path("audit/recover/", journals.recover, name="recover"),
]
