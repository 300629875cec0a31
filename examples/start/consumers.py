from channels.generic.websocket import AsyncJsonWebsocketConsumer

from mysite.models import Entry
from mysite.signing import sign


class SignConsumer(AsyncJsonWebsocketConsumer):
    async def receive_json(self, content):
        await sign(content["name"], content["text"])
        await self.send_json({"entries": await Entry.objects.acount()})
