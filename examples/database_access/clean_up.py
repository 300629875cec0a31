from django.contrib.auth.models import User

from ormbridge import aclose_old_connections


async def greet(usernames):
    async for username in usernames:
        await aclose_old_connections()  # <--
        user = await User.objects.aget(username=username)
        print(f"Hello, {user.username}")
