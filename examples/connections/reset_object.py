from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpResponse
from django.urls import path


def reset_object(connection):  # <--
    connection.tenant = None


def report(request, tenant):
    connection.tenant = tenant
    return HttpResponse(f"the report of {connection.tenant}, {User.objects.count()} users")


def front_page(request):
    return HttpResponse(f"the page of {getattr(connection, 'tenant', None) or 'nobody'}")


urlpatterns = [
    path("", front_page),
    path("<tenant>/", report),
]
