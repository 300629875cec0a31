from dataclasses import asdict

from django.http import JsonResponse
from django.urls import path

from ormbridge import stats


async def pool(request):
    return JsonResponse(asdict(stats()), json_dumps_params={"indent": 2})  # <--


urlpatterns = [path("pool/", pool)]
