import csv

from django.contrib.auth.models import User
from django.http import StreamingHttpResponse
from django.urls import path

from ormbridge import stream


class Line:
    def write(self, line):  # what csv writes a line to
        return line


async def lines():
    writer = csv.writer(Line())
    users = User.objects.order_by("username").values_list("username", "email")
    async for user in stream(users):  # <--
        yield writer.writerow(user)


async def export(request):
    return StreamingHttpResponse(lines(), content_type="text/csv")


urlpatterns = [path("export/", export)]
