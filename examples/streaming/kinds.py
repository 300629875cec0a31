from django.contrib.auth.models import User
from django.http import JsonResponse
from django.urls import path

from ormbridge import stream


async def kinds(request):
    users = User.objects.order_by("username")
    answer = {
        "values": [row["username"] async for row in stream(users.values("username"))],
        "values_list": [name async for (name,) in stream(users.values_list("username"))],
        "raw": [
            user.username
            async for user in stream(User.objects.raw("SELECT * FROM auth_user WHERE is_active"))
        ],
    }
    # One query more for each chunk of 500 users.
    async for user in stream(users.prefetch_related("groups"), chunk_size=500):  # <--
        answer[user.username] = [group.name for group in user.groups.all()]
    return JsonResponse(answer)


urlpatterns = [path("kinds/", kinds)]
