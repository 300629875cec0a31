import threading

from django.http import HttpResponse
from django.urls import path

local = threading.local()


def reset_thread(connection):  # <--
    local.__dict__.clear()


def report(request, tenant):
    local.tenant = tenant
    return HttpResponse(f"the report of {local.tenant}")


def front_page(request):
    return HttpResponse(f"the page of {getattr(local, 'tenant', 'nobody')}")


urlpatterns = [
    path("", front_page),
    path("<tenant>/", report),
]
