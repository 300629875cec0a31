from django.contrib.auth.models import User
from django.http import HttpResponse
from django.urls import path

from ormbridge import atomic, stream


async def normalise(request):
    count = 0
    async with atomic():
        async for user in stream(User.objects.order_by("pk")):  # <--
            user.email = user.email.lower()
            await user.asave(update_fields=["email"])
            count += 1
    return HttpResponse(f"{count} done")


urlpatterns = [path("normalise/", normalise)]
