import pytest
from asgiref.testing import ApplicationCommunicator
from channels.generic.websocket import JsonWebsocketConsumer
from django.contrib.auth.models import User


class GreetingConsumer(JsonWebsocketConsumer):
    def connect(self):
        self.accept()
        self.send_json({"hello": User.objects.get().username})


@pytest.mark.asyncio
async def test_greeting(async_db):  # <--
    await User.objects.acreate(username="ada")
    socket = ApplicationCommunicator(GreetingConsumer.as_asgi(), {"type": "websocket", "path": "/"})
    await socket.send_input({"type": "websocket.connect"})
    assert (await socket.receive_output())["type"] == "websocket.accept"
    assert (await socket.receive_output())["text"] == '{"hello": "ada"}'
    await socket.send_input({"type": "websocket.disconnect", "code": 1000})
    await socket.wait()
