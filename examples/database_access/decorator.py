from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth.models import User

from ormbridge import database_sync_to_async


class GreetingConsumer(AsyncWebsocketConsumer):
    async def connect(self):
        self.username = await self.get_name()
        await self.accept()
        await self.send(text_data=f"Hello, {self.username}")

    @database_sync_to_async  # <--
    def get_name(self):
        return User.objects.all()[0].username
