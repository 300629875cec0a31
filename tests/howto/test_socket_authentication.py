"""The page ``howto/socket-authentication``: who is on the other end of a socket."""

import pytest
from channels.auth import AuthMiddlewareStack, login
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.backends.db import SessionStore

from ormbridge import stats
from tests.howto.sockets import call, connect, say
from tests.support.http import disconnect

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("site")]


async def test_session(ada, session, load_example, recorded):
    """Who is logged in is let in, until she is locked out; a stranger is not."""
    application = load_example("socket_authentication/session").application
    seen = [f"a stranger: {await connect(call(application))}"]
    socket = call(application, session=session)
    seen.append(f"ada: {await connect(socket)}")
    seen.append(f"she says hi: {await say(socket, 'hi')}")
    await User.objects.filter(pk=ada.pk).aupdate(is_active=False)
    seen.append(f"locked out, she says hi: {await say(socket, 'hi')}")
    await disconnect(socket)
    recorded("socket_authentication/session", "\n".join(seen))


async def test_other_site_is_refused(session, load_example):
    """A page of another site cannot open the socket with the session of its visitor."""
    application = load_example("socket_authentication/session").application
    assert await connect(call(application, session=session, origin="https://evil.test")) == "close"


async def test_user_is_read_once(ada, session, load_example):
    """The user in the scope stays as it was when the socket was opened."""
    module = load_example("socket_authentication/session")

    class Stale(module.ChatConsumer):
        async def receive(self, text_data):
            await self.send(f"active: {self.scope['user'].is_active}")

    module.sockets.routes[0].callback = Stale.as_asgi()
    socket = call(module.application, session=session)
    await connect(socket)
    await User.objects.filter(pk=ada.pk).aupdate(is_active=False)
    assert await say(socket, "") == "active: True"
    await disconnect(socket)


async def test_user_is_read_on_a_worker(session, load_example):
    """Session and user are read through the pool."""
    application = load_example("socket_authentication/session").application
    socket = call(application, session=session)
    await connect(socket)
    assert stats().calls > 0
    await disconnect(socket)


async def test_refreshed_user_keeps_permissions(ada):
    """A permission that was asked for stays, until the user is read anew."""
    permission = await Permission.objects.aget(codename="add_user")
    await ada.user_permissions.aadd(permission)
    assert await ada.ahas_perm("auth.add_user")
    await ada.user_permissions.aremove(permission)
    await ada.arefresh_from_db()
    assert await ada.ahas_perm("auth.add_user")
    assert not await (await User.objects.aget(pk=ada.pk)).ahas_perm("auth.add_user")


async def test_deleted_account(ada, session, load_example):
    """Who was deleted is shown out, where a refresh would raise."""
    socket = call(load_example("socket_authentication/session").application, session=session)
    await connect(socket)
    await User.objects.filter(pk=ada.pk).adelete()
    with pytest.raises(User.DoesNotExist):
        await ada.arefresh_from_db()
    assert await say(socket, "hi") == "close 4403"
    await disconnect(socket)


async def test_login_over_the_socket(ada):
    """A login over a socket ends the session that the browser's cookie names."""
    before = SessionStore()
    await before.aset("cart", 1)
    await before.asave()

    class LogIn(AsyncWebsocketConsumer):
        async def connect(self):
            await self.accept()
            await login(self.scope, ada, "django.contrib.auth.backends.ModelBackend")
            await database_sync_to_async(self.scope["session"].save)()
            await self.send(self.scope["session"].session_key)

    socket = call(AuthMiddlewareStack(LogIn.as_asgi()), session=before.session_key)
    after = (await connect(socket)).removeprefix("accept, ")
    await disconnect(socket)
    exist = [await SessionStore().aexists(key) for key in (before.session_key, after)]
    assert exist == [False, True]
