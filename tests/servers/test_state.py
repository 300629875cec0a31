"""What a request leaves on its thread, on a real server: with RESET nobody else meets it."""

import asyncio
import json

import pytest

from tests.core.gate import GUARD
from tests.servers.client import get
from tests.servers.harness import Server

BOUND = 4


async def requests(server):
    """Put 240 requests at once on *server*; return what each kept, and what it saw of it."""
    kept = [f"tenant{n}" if n % 3 else "nobody" for n in range(240)]
    kinds = [f"{['sync', 'async'][n % 2]}/{tenant}/{n // 2 % 2}" for n, tenant in enumerate(kept)]
    async with asyncio.timeout(4 * GUARD):
        answers = await asyncio.gather(*[get(server.port, f"/state/{kind}") for kind in kinds])
    return [
        (tenant, set(json.loads(body))) for tenant, (_, body) in zip(kept, answers, strict=True)
    ]


def foreign(answers):
    return [answer for tenant, answer in answers if answer != {tenant}]


@pytest.mark.parametrize("age", [0, 60, None])
async def test_nobody_meets_the_state_of_another(database, monkeypatch, age):
    """With RESET 240 requests at once, with queries and without, see their own state or none."""
    monkeypatch.setenv("SERVERS_CONN_MAX_AGE", json.dumps(age))
    reset = {"MAX_THREADS": BOUND, "RESET": "tests.servers.project.state.reset"}
    with Server("uvicorn-asyncio", database, bridge=True, **reset) as server:
        assert foreign(await requests(server)) == []


async def test_without_reset_they_meet_it(database):
    """Without RESET a request that keeps nothing sees what another one left on its worker."""
    with Server("uvicorn-asyncio", database, bridge=True, MAX_THREADS=BOUND) as server:
        answers = await requests(server)
    assert {tenant for tenant, answer in answers if answer != {tenant}} == {"nobody"}
