from channels.generic.websocket import JsonWebsocketConsumer
from django.contrib.auth.models import User


class GreetingConsumer(JsonWebsocketConsumer):
    def connect(self):
        username = User.objects.all()[0].username  # <--
        self.accept()
        self.send_json({"hello": username})
