import asyncio
import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django.setup()

from asgiref.sync import async_to_sync
from celery import Celery
from django.contrib.auth.models import User

from ormbridge import pinned

app = Celery("mysite")
app.config_from_object("django.conf:settings", namespace="CELERY")


@pinned()
async def greeting(username):
    user = await User.objects.aget(username=username)
    return f"Hello, {user.username}"


async def greetings(usernames):
    return await asyncio.gather(*[greeting(each) for each in usernames])


@app.task
def greet(username):
    return async_to_sync(greeting)(username)  # on the connection of the task  # <--


@app.task
def greet_all(usernames):
    return asyncio.run(greetings(usernames))  # side by side, on workers of the pool  # <--
