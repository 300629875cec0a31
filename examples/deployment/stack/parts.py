"""How each part is started from the packages of the system, and what it says of itself."""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from .ports import HERE, HOST, configuration

#: The program of each part, and the package of Debian and Ubuntu that brings it.
PROGRAMS = {
    "initdb": "postgresql",
    "postgres": "postgresql",
    "pgbouncer": "pgbouncer",
    "redis-server": "redis-server",
    "nginx": "nginx",
}
#: The command of each server. nginx passes requests on to the port.
SERVERS = {
    "gunicorn": (
        "gunicorn -k uvicorn_worker.UvicornWorker -w {processes} -b {host}:{port}"
        " --graceful-timeout 60 --log-level warning --no-control-socket mysite.asgi:application"
    ),
    "granian": (
        "granian --interface asgi --workers {processes} --host {host} --port {port}"
        " --respawn-interval 2 --workers-kill-timeout 60 mysite.asgi:application"
    ),
}
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
# The Debian package keeps PostgreSQL's programs out of the path.
PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", *map(str, reversed(PLACES))])


def find(program):
    """Return the path of *program*, or None."""
    return shutil.which(program, path=PATH)


def missing():
    """Return the packages whose programs are not on this machine."""
    return sorted({package for program, package in PROGRAMS.items() if not find(program)})


def postgresql(place, ports):
    """Make a database cluster; return the command that serves it."""
    data = place / "postgresql"
    run = {"check": True, "stdout": subprocess.DEVNULL, "cwd": place, **account()}
    options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
    subprocess.run([find("initdb"), f"--pgdata={data}", *options], **run)
    settings = {
        "listen_addresses": HOST,
        "port": ports["postgresql"],
        "unix_socket_directories": "",
        "wal_level": "replica",
    }
    return [find("postgres"), "-D", data, *(f"--{key}={value}" for key, value in settings.items())]


def pgbouncer(place, ports):
    """Write its configuration; return its command."""
    (place / "pgbouncer.ini").write_text(configuration("pgbouncer.ini", ports), encoding="utf-8")
    shutil.copy(HERE / "users.txt", place)
    return [find("pgbouncer"), "pgbouncer.ini"]


def redis(place, ports):
    """Return the command of a Redis that keeps nothing on disk."""
    options = ["--bind", HOST, "--port", ports["redis"], "--save", "", "--appendonly", "no"]
    return [find("redis-server"), *options]


def nginx(place, ports):
    """Write its configuration; return its command."""
    # Where it would keep these files otherwise, only root may write.
    paths = " ".join(f"{each}_temp_path {each};" for each in TEMPORARY)
    text = configuration("nginx.conf", ports).replace("http {", f"http {{ {paths}")
    (place / "nginx.conf").write_text(text, encoding="utf-8")
    extra = f"daemon off; pid {place}/nginx.pid; error_log stderr;"
    return [find("nginx"), "-e", "stderr", "-p", f"{place}/", "-c", "nginx.conf", "-g", extra]


def app(server, processes, ports):
    """Return the command of the server that serves the project."""
    command = SERVERS[server].format(processes=processes, host=HOST, port=ports["app"])
    return [sys.executable, "-m", *command.split()]


def environment(ports, **more):
    """Return the environment of a process that uses the project."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "DJANGO_SETTINGS_MODULE": "mysite.settings",
        "DATABASE_PORT": str(ports["pgbouncer"]),
        "REDIS_URL": f"redis://{HOST}:{ports['redis']}",
        "SECRET_KEY": "of a stack that nobody else can reach",
        **more,
    }


def account():
    """Return who is to run PostgreSQL and PgBouncer: not root, which both refuse."""
    if os.geteuid() != 0:
        return {}
    return {"user": "postgres", "group": "postgres", "extra_groups": []}


def versions(server):
    """Return what the parts say of themselves."""

    def said(program, *options):
        command = [find(program), *options]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        return re.search(r"\d+(\.\d+)+", finished.stdout + finished.stderr)[0]

    packages = ["gunicorn", "uvicorn"] if server == "gunicorn" else [server]
    return {
        "PostgreSQL": said("postgres", "--version"),
        "PgBouncer": said("pgbouncer", "--version"),
        "Redis": said("redis-server", "--version"),
        "nginx": said("nginx", "-v"),
        **{name: metadata.version(name) for name in packages},
    }
