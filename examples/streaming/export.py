import csv
import io

from django.contrib.auth.models import User
from django.http import StreamingHttpResponse
from django.urls import path

from ormbridge import stream


async def lines():
    text = io.StringIO()
    writer = csv.writer(text)
    users = User.objects.order_by("username").values_list("username", "email")
    async for user in stream(users):  # <--
        writer.writerow(user)
        if text.tell() > 64_000:
            yield text.getvalue()
            text.seek(0)
            text.truncate()
    yield text.getvalue()


async def export(request):
    return StreamingHttpResponse(lines(), content_type="text/csv")


urlpatterns = [path("export/", export)]
