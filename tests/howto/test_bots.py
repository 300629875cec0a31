"""The page ``howto/bots``: handlers of real bots, with the service on the other end played here."""

import asyncio
import json
from contextlib import asynccontextmanager

import aiogram
import discord
import pytest
from aiogram.client.session.base import BaseSession
from aiogram.filters import CommandStart
from discord.ext import commands
from django.contrib.auth.models import User
from django.db import connection
from telegram.request import HTTPXRequest

from ormbridge import database_sync_to_async, pinned, stats
from tests.core.gate import GUARD
from tests.core.support import until
from tests.settings import CHOICE

pytestmark = [
    pytest.mark.django_db(transaction=True),
    # discord.py imports it for voice.
    pytest.mark.filterwarnings("ignore:'audioop' is deprecated:DeprecationWarning"),
]
BOT = {"id": 1, "is_bot": True, "first_name": "Bridge", "username": "bridge_bot"}


def update(number, sender):
    """Return the update in which *sender* writes /start, as Telegram's API sends it."""
    return {
        "update_id": number,
        "message": {
            "message_id": number,
            "date": 0,
            "chat": {"id": sender, "type": "private"},
            "from": {"id": sender, "is_bot": False, "first_name": "Ada"},
            "text": "/start",
            "entities": [{"type": "bot_command", "offset": 0, "length": 6}],
        },
    }


class Telegram:
    """Telegram's end of the line: hands out *updates* and keeps what the bot sends."""

    def __init__(self):
        self.updates = asyncio.Queue()
        self.sent = asyncio.Queue()
        self.answers = asyncio.Event()
        self.answers.set()
        self.said = 0

    def say(self, sender):
        """Have *sender* write /start."""
        self.said += 1
        self.updates.put_nowait(update(self.said, sender))

    async def answer(self, method, parameters):
        """Return the result of the API's *method*."""
        match method:
            case "getMe":
                return BOT
            case "getUpdates" if parameters.get("timeout"):
                return [await self.updates.get()]
            case "getUpdates":  # the last one, which tells what was handled
                return []
            case "sendMessage":
                self.sent.put_nowait(parameters["text"])
                await self.answers.wait()
                return {"message_id": 1, "date": 0, "chat": {"id": 1, "type": "private"}}
        return True

    async def hear(self):
        """Return what the bot sends next."""
        return await asyncio.wait_for(self.sent.get(), GUARD)


@pytest.fixture
async def telegram(monkeypatch):
    """Answer the requests that python-telegram-bot makes, in place of its HTTP client."""
    service = Telegram()

    async def do_request(self, url, method, request_data=None, **timeouts):
        parameters = request_data.parameters if request_data else {}
        result = await service.answer(url.rpartition("/")[2], parameters)
        return 200, json.dumps({"ok": True, "result": result}).encode()

    monkeypatch.setattr(HTTPXRequest, "do_request", do_request)
    return service


@asynccontextmanager
async def polling(application):
    """Run *application* as ``run_polling`` does, without its signal handlers."""
    async with application:
        await application.updater.start_polling()
        await application.start()
        try:
            yield
        finally:
            await application.updater.stop()
            await application.stop()


# The example.


async def test_telegram(telegram, load_example, recorded):
    """The bot greets who is new, and knows who was there before."""
    async with polling(load_example("bots/telegram_bot").build("1:token")):
        heard = []
        for _ in range(2):
            telegram.say(7)
            heard.append(await telegram.hear())
    recorded("bots/telegram_bot", "\n".join(heard))


async def test_worker_is_free_while_the_bot_sends(telegram, load_example):
    """While the message is on its way, the handler holds no worker."""
    telegram.answers.clear()
    async with polling(load_example("bots/telegram_bot").build("1:token")):
        telegram.say(7)
        await telegram.hear()
        await until(lambda: (stats().threads, stats().idle) == (1, 1))
        telegram.answers.set()


async def test_updates_at_the_same_time(telegram, load_example, gate):
    """With ``concurrent_updates``, the queries of two chats run at the same time."""
    module = load_example("bots/telegram_bot")

    @pinned()
    async def greeting(telegram_id):
        return await database_sync_to_async(gate)()

    module.greeting = greeting
    async with polling(module.build("1:token")):
        telegram.say(7)
        telegram.say(8)
        await gate.entered(2)
        gate.open.set()
        heard = {await telegram.hear(), await telegram.hear()}
    assert heard == {"ormbridge-worker-1", "ormbridge-worker-2"}


if CHOICE == "postgresql":  # which closes a connection from outside

    async def test_connection_that_was_closed_meanwhile(
        telegram, load_example, connection_settings
    ):
        """With health checks, the next update is answered on a new connection."""
        connection_settings(CONN_HEALTH_CHECKS=True)
        async with polling(load_example("bots/telegram_bot").build("1:token")):
            telegram.say(7)
            assert await telegram.hear() == "Welcome"
            await until(lambda: stats().idle == stats().threads)
            await asyncio.to_thread(terminate_others)
            telegram.say(7)
            assert await telegram.hear() == "Welcome back, telegram-7"


def terminate_others():
    """End every other connection to this database, from a thread that then closes its own."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert cursor.rowcount >= 1
    finally:
        connection.close()


# The same function in other bots.


@pinned()
async def greeting(person):
    user, is_new = await User.objects.aget_or_create(username=person)
    return f"{'Welcome' if is_new else 'Welcome back'}, {user.username}"


class Session(BaseSession):
    """What aiogram sends, kept."""

    def __init__(self):
        super().__init__()
        self.sent = []

    async def make_request(self, bot, method, timeout=None):  # noqa: ASYNC109 - as aiogram has it
        self.sent.append(method.text)
        return True

    async def stream_content(self, *args, **kwargs):
        raise NotImplementedError
        yield b""

    async def close(self):
        pass


async def test_aiogram():
    """A handler of aiogram 3 awaits the same function, and its queries run on a worker."""
    dispatcher, session = aiogram.Dispatcher(), Session()

    @dispatcher.message(CommandStart())
    async def start(message):
        await message.answer(await greeting(f"telegram-{message.from_user.id}"))

    bot = aiogram.Bot("1:token", session=session)
    for number in (1, 2):
        await dispatcher.feed_raw_update(bot, update(number, 7))
    assert session.sent == ["Welcome, telegram-7", "Welcome back, telegram-7"]
    assert stats().calls == 2


async def test_discord():
    """A command of discord.py awaits the same function, and its queries run on a worker."""
    bot = commands.Bot(command_prefix="!", intents=discord.Intents.all())
    sent = asyncio.Queue()

    @bot.command()
    async def start(context):
        await context.send(await greeting(f"discord-{context.author.id}"))

    async def request(route, **keywords):
        text = keywords["json"]["content"]
        sent.put_nowait(text)
        return message | {"content": text}

    author = {"id": "7", "username": "ada", "discriminator": "0", "avatar": None}
    message = {
        "id": "1",
        "channel_id": "3",
        "author": author,
        "content": "!start",
        "timestamp": "2026-01-01T00:00:00+00:00",
        "edited_timestamp": None,
        "type": 0,
        "mentions": [],
        "mention_roles": [],
        "mention_everyone": False,
        "tts": False,
        "pinned": False,
        "attachments": [],
        "embeds": [],
    }
    bot.http.request = request
    state = bot._connection
    state.user = discord.ClientUser(state=state, data={**author, "id": "1", "bot": True})
    await bot._async_setup_hook()
    heard = []
    for _ in range(2):
        state.parse_message_create(message)
        heard.append(await asyncio.wait_for(sent.get(), GUARD))
    assert heard == ["Welcome, discord-7", "Welcome back, discord-7"]
    assert stats().calls == 2
