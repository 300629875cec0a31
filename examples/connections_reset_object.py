from django.db import connection, connections
from django.http import HttpResponse
from django.urls import path


def reset_object(connection):  # <--
    connection.close()
    del connections[connection.alias]


def report(request, tenant):
    connection.tenant = tenant
    return HttpResponse(f"the report of {connection.tenant}")


def front_page(request):
    return HttpResponse(f"the page of {getattr(connection, 'tenant', 'nobody')}")


urlpatterns = [
    path("", front_page),
    path("<tenant>/", report),
]
