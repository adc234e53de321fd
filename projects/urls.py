from django.urls import path

from projects import views

urlpatterns = [
    path("", views.index, name="projects"),
    path("<str:slug>/", views.project, name="project"),
    path("<str:slug>/stories/<path:key>/", views.story, name="story"),
    path("<str:slug>/iterations/", views.iterations, name="iterations"),
    path("<str:slug>/iterations/<int:number>/", views.iteration, name="iteration"),
    path("<str:slug>/iterations/<int:number>/log", views.iteration_log, name="iteration-log"),
]
