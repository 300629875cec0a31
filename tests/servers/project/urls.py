"""The addresses of the project."""

from channels.routing import URLRouter
from django.urls import path

from tests.servers.project import consumers, state, views

urlpatterns = [
    path("alive", views.alive),
    path("async", views.async_view),
    path("sync", views.sync_view),
    path("async/sleep", views.async_sleep),
    path("sync/sleep", views.sync_sleep),
    path("async/wait", views.async_wait),
    path("sync/wait", views.sync_wait),
    path("async/insert/<str:name>", views.async_insert),
    path("sync/insert/<str:name>", views.sync_insert),
    path("export", views.export),
    path("export/progress", views.export_progress),
    path("async/raise", views.async_raise),
    path("sync/raise", views.sync_raise),
    path("stream/raise", views.stream_raise),
    path("block", views.block),
    path("background/<str:name>", views.background),
    path("database/error", views.database_error),
    path("events", views.events),
    path("state/async/<str:tenant>/<int:queries>", state.async_view),
    path("state/sync/<str:tenant>/<int:queries>", state.sync_view),
]

websockets = URLRouter(
    [
        path("sockets/async", consumers.Async.as_asgi()),
        path("sockets/json", consumers.Json.as_asgi()),
        path("sockets/sync", consumers.Sync.as_asgi()),
    ]
)
