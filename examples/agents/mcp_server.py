import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django.setup()

from django.contrib.auth.models import Group, User
from mcp.server import MCPServer

from ormbridge import atomic, pinned

mcp = MCPServer("users")


@mcp.tool()
@pinned()  # <--
async def find_users(name: str) -> list[str]:
    """Return the names of the users whose name begins so."""
    users = User.objects.filter(username__startswith=name).order_by("username")
    return [user.username async for user in users]


@mcp.tool()
@atomic()  # <--
async def add_to_team(name: str, team: str) -> str:
    """Put a user into a team, which is made if it is not there."""
    group, _ = await Group.objects.aget_or_create(name=team)
    user = await User.objects.aget(username=name)
    await user.groups.aadd(group)
    return f"{name} is in {team}, of {await group.user_set.acount()}"


if __name__ == "__main__":
    mcp.run()
