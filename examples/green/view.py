from django.contrib.auth.models import User
from django.http import JsonResponse
from django.urls import path

from ormbridge import database_sync_to_async


@database_sync_to_async(green=True)  # <--
def newest(number):
    return list(User.objects.order_by("-pk").values_list("username", flat=True)[:number])


async def users(request):
    count = await User.objects.acount()  # Django's own: green without a word
    return JsonResponse({"count": count, "newest": await newest(3)})


urlpatterns = [path("users/", users)]
