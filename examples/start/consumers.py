from channels.generic.websocket import AsyncJsonWebsocketConsumer

from guestbook.models import Entry
from guestbook.signing import sign


class SignConsumer(AsyncJsonWebsocketConsumer):
    async def receive_json(self, content):
        await sign(content["name"], content["text"])
        await self.send_json({"entries": await Entry.objects.acount()})
