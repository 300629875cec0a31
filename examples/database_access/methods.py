from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth.models import User

from ormbridge import database_sync_to_async


class GreetingConsumer(AsyncWebsocketConsumer):
    greeting = "Hello"

    async def connect(self):
        user_id = await self.get_user_id("ada")
        await self.accept()
        await self.send(text_data=await self.get_greeting(user_id))

    @staticmethod
    @database_sync_to_async  # <--
    def get_user_id(username):
        return User.objects.get(username=username).pk

    @classmethod
    @database_sync_to_async  # <--
    def get_greeting(cls, user_id):
        return f"{cls.greeting}, {User.objects.get(pk=user_id).username}"
