from channels.consumer import SyncConsumer
from channels.exceptions import StopConsumer
from django.contrib.auth.models import User


class GreetingConsumer(SyncConsumer):
    def websocket_connect(self, event):
        username = User.objects.all()[0].username  # <--
        self.send({"type": "websocket.accept"})
        self.send({"type": "websocket.send", "text": f"Hello, {username}"})

    def websocket_disconnect(self, event):
        raise StopConsumer
