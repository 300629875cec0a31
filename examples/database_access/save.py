from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth.models import Group, User
from django.utils import timezone

from ormbridge import atomic


class TeamConsumer(AsyncWebsocketConsumer):
    async def connect(self):
        await self.accept()
        size = await self.join("ada", "chess")
        await self.send(text_data=f"{size} in the team")

    @atomic  # <--
    async def join(self, username, name):
        team, _ = await Group.objects.aget_or_create(name=name)
        user = await User.objects.select_for_update().aget(username=username)
        user.last_login = timezone.now()
        await user.asave(update_fields=["last_login"])
        await user.groups.aadd(team)
        return await team.user_set.acount()
