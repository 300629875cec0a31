"""The addresses."""

from django.urls import path

from . import views

urlpatterns = [
    path("", views.index),
    path("users/", views.sign_up),
    path("slow/", views.slow),
    path("process/", views.process),
]
