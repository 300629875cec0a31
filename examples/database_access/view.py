from django.contrib.auth.models import User
from django.http import HttpResponse
from django.urls import path

from ormbridge import database_sync_to_async


@database_sync_to_async
def get_name():
    return User.objects.all()[0].username


async def greeting(request):
    username = await get_name()  # <--
    return HttpResponse(f"Hello, {username}")


urlpatterns = [path("greeting/", greeting)]
