"""Start the stack, say what runs, and end it with Ctrl-C."""

import argparse
import signal
from contextlib import suppress

from . import parts
from .ports import HOST, PORTS, free_ports, taken
from .running import Stack


def parse_arguments():
    parser = argparse.ArgumentParser(prog="nox -s deployment --", description=__doc__)
    parser.add_argument("--server", choices=parts.SERVERS, default="gunicorn")
    parser.add_argument("--processes", type=int, default=2, help="default 2")
    parser.add_argument("--threads", type=int, default=10, help="of each process; default 10")
    parser.add_argument("--free-ports", action="store_true", help="take any that are free")
    return parser.parse_args()


def found(stack):
    """Yield a line for each part: what it is, where it listens, and what it was found to be."""
    versions = parts.versions(stack.server)
    (most,) = stack.ask("postgres", "SHOW max_connections")
    settings = {
        row["key"]: row["value"] for row in stack.ask("pgbouncer", "SHOW CONFIG", "pgbouncer")
    }
    server = f"{len(stack.servers())} processes, {stack.threads} threads each"
    if "uvicorn" in versions:
        server += f", with uvicorn {versions['uvicorn']}"
    mode, size = settings["pool_mode"], settings["default_pool_size"]
    told = {
        "PostgreSQL": ("postgresql", f"max_connections {most['max_connections']}"),
        "PgBouncer": ("pgbouncer", f"pools by {mode}, {size} connections to PostgreSQL"),
        "Redis": ("redis", "the channel layer"),
        stack.server: ("app", server),
        "nginx": ("nginx", "in front"),
    }
    for name, (part, what) in told.items():
        yield f"{name + ' ' + versions[name]:20} {HOST}:{stack.ports[part]:<8} {what}"


def on_end(handler):
    """Have *handler* called at whatever is to end the program."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)


def main():
    arguments = parse_arguments()
    if missing := parts.missing():
        raise SystemExit(
            f"Not on this machine: {', '.join(missing)}. On Debian or Ubuntu:\n\n"
            f"    sudo apt-get install --no-install-recommends {' '.join(missing)}\n"
        )
    ports = free_ports() if arguments.free_ports else PORTS
    if used := taken(ports):
        raise SystemExit(f"In use: {', '.join(used)}. Say -- --free-ports to take others.")
    # Whatever ends the program ends the stack: a service manager or a closed terminal, too.
    on_end(signal.default_int_handler)
    try:
        with Stack(ports, arguments.server, arguments.processes, arguments.threads) as stack:
            print(*found(stack), sep="\n")
            print(f"\nOpen {stack.url}. A rolling restart: kill -HUP {stack.processes['app'].pid}")
            print("Ctrl-C ends it.", flush=True)
            with suppress(KeyboardInterrupt):
                signal.pause()
            on_end(signal.SIG_IGN)  # a second Ctrl-C would leave something behind
            print("Ending …", flush=True)
        print("Ended: nothing runs any more, and nothing is left on disk.")
    except KeyboardInterrupt:  # before everything ran
        raise SystemExit("Ended before it had begun.") from None


if __name__ == "__main__":
    main()
