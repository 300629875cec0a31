import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django_application = get_asgi_application()  # loads the apps: before what imports models

from django.contrib.auth.models import Group, User
from fastapi import FastAPI, HTTPException

from ormbridge import BridgeMiddleware, atomic

api = FastAPI()


@api.get("/api/users/{username}")
async def show(username: str):
    user = await User.objects.filter(username=username).afirst()
    if user is None:
        raise HTTPException(404)
    return {"id": user.pk, "username": user.username}


@api.post("/api/users/{username}", status_code=201)
async def sign_up(username: str):
    async with atomic():
        user = await User.objects.acreate(username=username)
        team = await Group.objects.acreate(name=f"team of {username}")
        await user.groups.aadd(team)
    return {"id": user.pk}


api.mount("/", django_application)  # what FastAPI does not know, such as /admin/
application = BridgeMiddleware(api)  # <--
