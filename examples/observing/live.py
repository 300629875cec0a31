import asyncio
from dataclasses import asdict

from channels.generic.websocket import AsyncJsonWebsocketConsumer

from ormbridge import stats


class PoolConsumer(AsyncJsonWebsocketConsumer):
    async def connect(self):
        await self.accept()
        self.reporting = asyncio.create_task(self.report())

    async def report(self):
        while True:
            await self.send_json(asdict(stats()))  # <--
            await asyncio.sleep(1)

    async def disconnect(self, code):
        self.reporting.cancel()
