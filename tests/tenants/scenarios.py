"""Put 240 requests at once and some sockets on the project, and count whose tables they saw.

Prints JSON: for each kind of user, how many saw their ``own`` tenant, ``public``, and another's
(``foreign``). With ``prepare`` as its argument, it makes the tables instead; with ``behind a
pooler`` it puts less on it, and with ``calls`` only what sets a tenant for itself.
"""

import asyncio
import json
import sys
from collections import Counter
from typing import Any

import django

django.setup()

from asgiref.testing import ApplicationCommunicator  # noqa: E402 - Django must be set up first
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.db import connection  # noqa: E402
from django.urls import path  # noqa: E402
from django_tenants.utils import schema_context  # noqa: E402

from examples.connections.tenant_of_a_call import names, names_in, names_one_by_one  # noqa: E402
from ormbridge import BridgeMiddleware, database_sync_to_async, pinned, stats  # noqa: E402
from tests.core.gate import GUARD  # noqa: E402
from tests.tenants import TENANTS, views  # noqa: E402
from tests.tenants.models import Client, Domain, owner  # noqa: E402

#: What is seen where no tenant is, and where a request fails.
NOBODY = ["public", "status 500"]

sockets = URLRouter([path("sync", views.Sync.as_asgi()), path("async", views.Async.as_asgi())])
application = BridgeMiddleware(
    ProtocolTypeRouter({"http": get_asgi_application(), "websocket": sockets})
)


def prepare() -> None:
    with connection.schema_editor() as editor:
        editor.create_model(Client)
        editor.create_model(Domain)
    with connection.cursor() as cursor:
        for name in ["public", *TENANTS]:
            cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {name}")
            cursor.execute(f"CREATE TABLE {name}.owner (id bigint, name text)")
            cursor.execute(f"INSERT INTO {name}.owner VALUES (1, '{name}')")
            columns = "id, name AS username"
            cursor.execute(f"CREATE TABLE {name}.auth_user AS SELECT {columns} FROM {name}.owner")
    for name in TENANTS:
        client = Client.objects.create(schema_name=name)
        Domain.objects.create(domain=f"{name}.example", tenant=client)


async def request(what: str, tenant: str) -> tuple[str, list[str]]:
    """Return whose tables a request of *tenant* saw."""
    headers = [(b"host", f"{tenant}.example".encode())]
    scope = {"type": "http", "method": "GET", "path": f"/{tenant}/{what}", "headers": headers}
    client = ApplicationCommunicator(application, scope)
    await client.send_input({"type": "http.request"})
    start = await client.receive_output(2 * GUARD)
    body = (await client.receive_output(GUARD))["body"]
    await client.wait(GUARD)
    return tenant, json.loads(body) if start["status"] == 200 else [f"status {start['status']}"]


async def socket(kind: str, *messages: str) -> tuple[str, list[str]]:
    """Return whose tables a socket saw that sent *messages*."""
    client = ApplicationCommunicator(application, {"type": "websocket", "path": f"/{kind}"})
    await client.send_input({"type": "websocket.connect"})
    await client.receive_output(GUARD)
    seen = []
    for message in messages:
        await client.send_input({"type": "websocket.receive", "text": message})
        seen.append((await client.receive_output(2 * GUARD))["text"])
    await client.send_input({"type": "websocket.disconnect", "code": 1000})
    await client.wait(GUARD)
    return messages[0].partition(" ")[2] or "none", [each for each in seen if each]


def count(answers: list[tuple[str, list[str]]]) -> dict[str, int]:
    """Count what users saw; *answers* are pairs of a tenant and what its user saw."""
    seen = Counter(
        "own" if who == tenant else who if who in NOBODY else "foreign"
        for tenant, answer in answers
        for who in answer
    )
    return dict(seen)


def tenant(number: int) -> str:
    return TENANTS[number % len(TENANTS)]


async def run() -> dict[str, Any]:
    settled = [request(["async", "sync", "nested"][n % 3], tenant(n)) for n in range(120)]
    without = [request(["sync", "async", "nested"][n % 3], "none") for n in range(24)]
    released = [request("released", tenant(n)) for n in range(24)]
    left = [request("task", tenant(n)) for n in range(24)]
    retried = [request("retried", tenant(n)) for n in range(8)]
    cancelled = [request("cancelled", tenant(n)) for n in range(16)]
    parallel = [request("parallel", tenant(n)) for n in range(8)]
    raising = [request("raising", tenant(n)) for n in range(16)]
    kinds = {
        "requests": settled,
        "requests without a tenant": without,
        "after release()": released,
        "while the request of a task runs": left,
        "retried": retried,
        "after a cancelled call": cancelled,
        "thread_sensitive=False": parallel,
        "raising": raising,
        "sockets: one call": [socket("sync", f"both {tenant(n)}") for n in range(12)]
        + [socket("async", f"both {tenant(n)}") for n in range(12)],
        "sockets: two calls": [socket("sync", f"set {tenant(n)}", "ask") for n in range(12)]
        + [socket("async", f"set {tenant(n)}", "ask") for n in range(12)],
        "sockets without a tenant": [socket("sync", "ask", "ask") for n in range(12)]
        + [socket("async", "ask", "ask") for n in range(12)],
        "sockets: pinned()": [socket("async", f"pinned {tenant(n)}") for n in range(12)],
        "sockets: retried": [socket("async", f"retried {tenant(n)}") for n in range(6)],
    }
    requests = sum(len(kinds[kind]) for kind in kinds if not kind.startswith("socket"))
    assert requests == 240, requests
    # One kind after the other in the list, but all kinds mixed on the workers.
    mixed = [(kind, each) for kind, each_of in kinds.items() for each in each_of]
    order = sorted(range(len(mixed)), key=lambda n: (n * 7919) % len(mixed))
    answers = await asyncio.gather(*[mixed[n][1] for n in order])
    seen: dict[str, list[Any]] = {kind: [] for kind in kinds}
    for n, answer in zip(order, answers, strict=True):
        seen[mixed[n][0]].append(answer)
    views.requests_are_over.set()
    outlived = await asyncio.gather(*views.tasks)
    seen["tasks that outlive their request"] = [("none", answer) for answer in outlived]
    async with asyncio.timeout(GUARD):
        while stats().idle != stats().threads:  # noqa: ASYNC110 # a worker makes it true
            await asyncio.sleep(0.01)
    last = [database_sync_to_async(owner)() for _ in range(12)]
    seen["calls outside of the middleware"] = [("none", await asyncio.gather(*last))]
    return {kind: count(each) for kind, each in seen.items()}


async def run_behind_a_pooler() -> dict[str, Any]:
    """Ask outside of a transaction, where each statement is one of its own, and in one."""
    outside = [request("sync", tenant(n)) for n in range(48)]
    inside = [request("transaction", tenant(n)) for n in range(48)]
    seen = {"outside": await asyncio.gather(*outside), "inside": await asyncio.gather(*inside)}
    return {kind: count(each) for kind, each in seen.items()}


async def around_the_call(tenant: str) -> list[str]:
    """Set the tenant on the thread of the event loop, which is not where the query runs."""
    with schema_context(tenant):
        return [name async for name in names.all()]


async def around_the_call_pinned(tenant: str) -> list[str]:
    async with pinned():
        return await around_the_call(tenant)


async def run_calls() -> dict[str, Any]:
    """Call what the page has, for all tenants at once, and what it warns of."""
    ways: dict[str, Any] = {
        "in the function": names_in,
        "on the worker of pinned()": names_one_by_one,
        "around the call": around_the_call,
        "around the call, in pinned()": around_the_call_pinned,
    }
    seen = {}
    for where, ask in ways.items():
        answers = await asyncio.gather(*[ask(tenant) for tenant in TENANTS])
        seen[where] = count(list(zip(TENANTS, answers, strict=True)))
    return seen


def main(what: str = "run") -> None:
    runs = {"run": run, "behind a pooler": run_behind_a_pooler, "calls": run_calls}
    if what == "prepare":
        prepare()
    else:
        print(json.dumps(asyncio.run(runs[what]())))  # noqa: T201 - the test reads it


if __name__ == "__main__":
    main(*sys.argv[1:])
