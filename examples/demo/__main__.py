"""Start the demo on this machine alone, open its page, and clean up after Ctrl-C."""

import argparse
import os
import signal
import socket
import tempfile
import threading
import webbrowser
from contextlib import suppress
from pathlib import Path

import django
import uvicorn
from django.core.management import call_command
from django.db import connection

HOST = "127.0.0.1"


def parse_arguments():
    parser = argparse.ArgumentParser(prog="nox -s demo --", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    return parser.parse_args()


def listen(port):
    """Return a socket that listens on *port*, or on a free one if that is taken."""
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        free = socket.create_server((HOST, 0))
        instead = free.getsockname()[1]
        print(f"Port {port} cannot be used ({error.strerror}); taking {instead} instead.")
        return free


def make_database(path):
    os.environ["ORMBRIDGE_DEMO_DATABASE"] = str(path)
    os.environ["DJANGO_SETTINGS_MODULE"] = "examples.demo.settings"
    django.setup()
    from django.contrib.auth.models import User

    call_command("migrate", verbosity=0)
    User.objects.create(username="ada")
    connection.close()


class Server(uvicorn.Server):
    """Says that it runs when Ctrl-C ends it, and not before."""

    def __init__(self, config, announce):
        super().__init__(config)
        self.announce = announce

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.announce()


def serve(server_socket, announce):
    from .asgi import application

    config = uvicorn.Config(
        application,
        loop="asyncio",
        lifespan="off",
        log_level="warning",
        timeout_graceful_shutdown=5,
    )
    Server(config, announce).run(sockets=[server_socket])


def main():
    arguments = parse_arguments()
    # What ends the process otherwise would leave the database behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="ormbridge-demo-", ignore_cleanup_errors=True) as place,
        listen(arguments.port) as server_socket,
    ):
        make_database(Path(place, "demo.sqlite3"))
        url = f"http://{HOST}:{server_socket.getsockname()[1]}/"

        def announce():
            print(f"The demo runs at {url}\nCtrl-C ends it.", flush=True)
            if not arguments.no_browser:
                # A browser in the terminal would not return before it is closed.
                threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()

        serve(server_socket, announce)


if __name__ == "__main__":
    main()
