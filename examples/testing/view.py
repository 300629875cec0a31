import pytest
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.urls import path


async def sign_up(request, name):
    await User.objects.acreate(username=name)
    return HttpResponse(status=201)


urlpatterns = [path("sign-up/<name>/", sign_up)]


@pytest.mark.asyncio
@pytest.mark.urls(__name__)
async def test_sign_up(async_db, async_client):  # <--
    response = await async_client.post("/sign-up/ada/")
    assert response.status_code == 201
    assert (await User.objects.aget()).username == "ada"
