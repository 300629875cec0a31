# %%
import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django.setup()

from django.contrib.auth.models import User

from ormbridge import atomic, database_sync_to_async

# %%
User.objects.count()

# %%
await User.objects.acount()  # <--

# %%
async with atomic():
    ada = await User.objects.acreate(username="ada", email="ada@example.com")
    bob = await User.objects.acreate(username="bob")

# %%
[user.username async for user in User.objects.order_by("pk")]


# %%
@database_sync_to_async  # what you have in a function stays as it is
def without_email():
    return list(User.objects.filter(email="").values_list("username", flat=True))


await without_email()
