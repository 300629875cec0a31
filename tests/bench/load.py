"""Clients of one application: how each of their requests went.

`python -m tests.bench.load NAME` prints a line when it is warm. For each line "SECONDS CLIENTS" it
then reads, that many clients send one request after the other for that long. One whose request
failed waits a moment before the next. It prints as a line of JSON when each request began and ended
and with which status, and how many milliseconds late the loop was at
the worst. With a third number, the requests
take a second, and each client leaves after so many seconds, which has the status 499.

`bad_days.py` starts it, and breaks what is below it meanwhile.
"""

import asyncio
import json
import logging
import sys
import time

from django.conf import settings

from tests.bench import Failed, asgi
from tests.bench.contestant import OWN, configure, tick

#: Seconds that a request may wait for a connection: ormbridge's TIMEOUT, and that of Django's pool.
TIMEOUT = 0.5
#: Seconds until a client whose request failed tries again.
PAUSE = 0.05
#: Seconds within which all clients have come.
COMING = 0.5
WARM = 50


async def clients(call, seconds, count):
    """Let *count* clients send requests; returns when each began and ended, and its status."""
    made, end = [], time.monotonic() + seconds

    async def client(number):
        await asyncio.sleep(COMING * number / count)
        while (began := time.monotonic()) < end:
            status = 200
            try:
                await call()
            except Failed as error:
                status = error.args[0][0]["status"] if error.args else 499
            made.append((began, time.monotonic(), status))
            if status != 200:
                await asyncio.sleep(PAUSE)

    await asyncio.gather(*(client(number) for number in range(count)))
    return made


async def run(name):
    """Warm up, then let clients send requests for each line of standard input."""
    call = asgi.get(name)
    await clients(call, 2 * COMING, WARM)
    print("warm", flush=True)
    for line in sys.stdin:
        seconds, count, *patience = line.split()
        if patience:
            call = asgi.get(name, "/slow", float(patience[0]))
        late = []
        ticking = asyncio.create_task(tick(late))
        requests = await clients(call, float(seconds), int(count))
        ticking.cancel()
        print(json.dumps({"requests": requests, "late": max(late)}), flush=True)


def main(name):
    """Set Django up, and let clients come."""
    own = dict(OWN.get(name, {}))
    if "OPTIONS" in own:
        own["OPTIONS"] = {**own["OPTIONS"], "pool": {**own["OPTIONS"]["pool"], "timeout": TIMEOUT}}
    configure(CONN_HEALTH_CHECKS=True, **own)
    settings.ORMBRIDGE["TIMEOUT"] = TIMEOUT
    logging.disable()  # thousands of lines, of the same few kinds
    asyncio.run(run(name))


if __name__ == "__main__":
    main(*sys.argv[1:])
