from django.contrib.auth.models import Group, User
from django.http import HttpResponse
from django.urls import path

from ormbridge import atomic


async def sign_up(request, name):
    async with atomic():  # <--
        user = await User.objects.acreate(username=name)
        team = await Group.objects.acreate(name=f"team of {name}")
        await user.groups.aadd(team)
    return HttpResponse(f"{name} has signed up")


urlpatterns = [path("sign-up/<name>/", sign_up)]
