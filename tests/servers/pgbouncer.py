"""PgBouncer in front of the server, and examples that run there as scripts."""

import contextlib
import os
import shutil
import subprocess
import time

import psycopg

from examples.deployment.stack.ports import free_port
from tests.core.gate import GUARD
from tests.guide.conftest import run_python
from tests.servers.harness import address
from tests.support.examples import example_source

PROGRAM = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
CONFIGURATION = """
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = {mode}
default_pool_size = {size}
ignore_startup_parameters = extra_float_digits, options
"""


@contextlib.contextmanager
def running(mode, size, database, tmp_path):
    """Run PgBouncer, with *size* connections to the server, and yield its port."""
    assert PROGRAM, "PgBouncer is missing: apt-get install pgbouncer"
    port = free_port()
    server = address(database)
    through = {**server, "host": "127.0.0.1", "port": port}
    path, users = tmp_path / "pgbouncer.ini", tmp_path / "users.txt"
    users.write_text(f'"{server["user"]}" "{server["password"]}"\n')
    path.write_text(
        CONFIGURATION.format(
            host=server["host"],
            port=server["port"],
            listen=port,
            users=users,
            mode=mode,
            size=size,
        )
    )
    command = [PROGRAM, str(path)]
    if os.geteuid() == 0:  # it refuses to run as root
        for each in (path, users, *list(path.parents)[:3]):
            each.chmod(0o755)
        command[1:1] = ["-u", "postgres"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        give_up = time.monotonic() + GUARD
        while process.poll() is None and time.monotonic() < give_up:
            try:
                psycopg.connect(**through, connect_timeout=5).close()
                break
            except psycopg.OperationalError:
                time.sleep(0.02)
        else:
            process.kill()
            raise AssertionError(process.communicate()[0].decode())
        yield str(port)
    finally:
        process.terminate()
        process.communicate(timeout=GUARD)


def run_example(name, tmp_path, changes=(), **environment):
    """Run an example as a script; return what it prints."""
    source = example_source(name)
    for before, after in changes:
        assert before in source
        source = source.replace(before, after)
    finished = run_python(tmp_path, source, stderr=subprocess.STDOUT, **environment)
    assert finished.returncode == 0, finished.stdout
    return finished.stdout
