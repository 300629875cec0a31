"""The page ``howto/commands``: a command of ``manage.py`` that does many jobs at once."""

import asyncio
import io

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command

from ormbridge import database_sync_to_async, pinned

pytestmark = pytest.mark.django_db(transaction=True)


def test_command(ada, load_example, recorded):
    """The command does one job for each name."""
    User.objects.create(username="bob")
    output = io.StringIO()
    call_command(load_example("commands/greet").Command(), "ada", "bob", stdout=output)
    assert [each.first_name for each in User.objects.order_by("pk")] == ["Ada", "Bob"]
    recorded("commands/greet", output.getvalue())


async def test_jobs_of_a_command_at_the_same_time(load_example, gate):
    """The jobs run at the same time, each on a worker of its own."""
    module = load_example("commands/greet")

    @pinned()
    async def greet(username):
        return await database_sync_to_async(gate)()

    module.greet = greet
    command = asyncio.to_thread(module.Command().handle, usernames=["ada", "bob"])
    running = asyncio.create_task(command)
    await gate.entered(2)
    gate.open.set()
    await running
    assert sorted(gate.threads) == ["ormbridge-worker-1", "ormbridge-worker-2"]
