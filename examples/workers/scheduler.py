import asyncio
import os
from datetime import timedelta

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django.setup()

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from django.contrib.auth.models import User
from django.utils import timezone

from ormbridge import pinned

scheduler = AsyncIOScheduler()


@scheduler.scheduled_job("interval", minutes=5)
@pinned()  # <--
async def deactivate_absent():
    month_ago = timezone.now() - timedelta(days=30)
    absent = User.objects.filter(is_active=True, last_login__lt=month_ago)
    number = await absent.aupdate(is_active=False)
    print(f"{number} deactivated, {await User.objects.filter(is_active=True).acount()} active")


async def main():
    scheduler.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
