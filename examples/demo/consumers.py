"""What both sides run, and what tells the page about it."""

import asyncio
from contextlib import suppress
from dataclasses import asdict

from channels.generic.websocket import AsyncJsonWebsocketConsumer, WebsocketConsumer
from django.contrib.auth.models import User

import ormbridge

from .meter import BRIDGE, PLAIN


class QueryConsumer(WebsocketConsumer):
    def receive(self, text_data=None, bytes_data=None):
        username = User.objects.all()[0].username
        self.send(text_data=f"Hello, {username}")


class StatsConsumer(AsyncJsonWebsocketConsumer):
    async def connect(self):
        await self.accept()
        self.reporting = asyncio.create_task(self.report())

    async def disconnect(self, code):
        self.reporting.cancel()

    async def report(self):
        with suppress(OSError):  # the page is gone
            while True:
                pool = asdict(ormbridge.stats())
                await self.send_json({"plain": PLAIN.now(), "bridge": BRIDGE.now(), "pool": pool})
                await asyncio.sleep(0.2)
