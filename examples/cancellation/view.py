import asyncio

from django.contrib.auth.models import User
from django.db.models.expressions import RawSQL
from django.http import HttpResponse
from django.urls import path


async def report(request):
    slow = User.objects.filter(pk__gt=RawSQL("SELECT 0 FROM pg_sleep(30)", []))
    try:
        async with asyncio.timeout(0.1):
            return HttpResponse(await slow.acount())
    except TimeoutError:
        users = await User.objects.acount()
        return HttpResponse(f"{users} users are too many to look at", status=504)


urlpatterns = [path("report/", report)]
