import asyncio

from django.contrib.auth.models import User
from django.http import StreamingHttpResponse
from django.urls import path

from ormbridge import release


async def count_users():
    while True:
        count = await User.objects.acount()
        await release()  # <--
        yield f"data: users {count}\n\n"
        await asyncio.sleep(10)


async def events(request):
    return StreamingHttpResponse(count_users(), content_type="text/event-stream")


urlpatterns = [path("events/", events)]
