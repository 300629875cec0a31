from django.urls import path

from mysite.views import entries

urlpatterns = [path("", entries)]
