from django.db import connection
from django.http import HttpResponse
from django.urls import path


def get_search_path():
    with connection.cursor() as cursor:
        cursor.execute("SHOW search_path")
        return cursor.fetchone()[0]


def report(request, tenant):
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('search_path', %s, false)", [tenant])  # <--
    return HttpResponse(f"the tables of {get_search_path()}")


def front_page(request):
    return HttpResponse(f"the tables of {get_search_path()}")


urlpatterns = [
    path("", front_page),
    path("<tenant>/", report),
]
