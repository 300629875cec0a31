"""The page of the demo."""

import inspect

from django.shortcuts import render
from django.urls import path

from .consumers import QueryConsumer
from .meter import LATENCY

# The page is one file; the browser lets it load nothing and connect to nobody but this server.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(request):
    shown = {"consumer": inspect.getsource(QueryConsumer), "latency": round(LATENCY * 1000)}
    response = render(request, "page.html", shown)
    response["Content-Security-Policy"] = POLICY
    return response


urlpatterns = [path("", page)]
