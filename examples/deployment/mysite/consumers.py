"""A room: what one says, all hear, whichever process their socket is in."""

import os

from channels.generic.websocket import AsyncJsonWebsocketConsumer
from django.contrib.auth.models import User


class RoomConsumer(AsyncJsonWebsocketConsumer):
    async def connect(self):
        self.room = self.scope["url_route"]["kwargs"]["room"]
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()
        await self.send_json({"pid": os.getpid()})

    async def disconnect(self, code):
        await self.channel_layer.group_discard(self.room, self.channel_name)

    async def receive_json(self, content):
        users = await User.objects.acount()
        if "say" not in content:
            await self.send_json({"users": users})
            return
        said = {"type": "said", "text": content["say"], "users": users}
        await self.channel_layer.group_send(self.room, said)

    async def said(self, event):
        await self.send_json({"text": event["text"], "users": event["users"]})
