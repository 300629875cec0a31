from django.contrib.auth.models import User
from django.http import HttpResponse
from django.urls import path

from ormbridge import stream


async def first_without_email(request):
    async with stream(User.objects.order_by("pk")) as users:  # <--
        async for user in users:
            if not user.email:
                break
        else:
            return HttpResponse("all have one")
    # Here the cursor is closed.
    return HttpResponse(user.username)


urlpatterns = [path("without-email/", first_without_email)]
