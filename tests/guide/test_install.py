"""The page ``install``: its versions are those of the project, and its drivers work."""

import re
import tomllib
from pathlib import Path

from tests.settings import CHOICE, DATABASES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

PROGRAM = """
import asyncio, sys
{first}
import django
from django.conf import settings
settings.configure(DATABASES={{"default": {default!r}}}, ORMBRIDGE={{"MAX_THREADS": 1}})
django.setup()
from django.db import connection
from ormbridge import atomic, database_sync_to_async

@database_sync_to_async
def ask(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return type(connection.connection).__module__, *cursor.fetchone()

async def main():
    print(await ask("SELECT 42"))
    async with atomic():
        print(await ask("SELECT 43"))
{more}

asyncio.run(main())
"""


def rows(heading):
    """Return the cells of the first table below *heading*, without its head."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_extras():
    """The page lists the extras of the package, and what each of them installs."""
    shown = {name.strip("`"): needs.strip("`") for name, needs, _ in rows("Extras")}
    assert {each: needs for each, (needs,) in PROJECT["optional-dependencies"].items()} == shown


def test_oldest_versions():
    """The page names the oldest Python, Django, asgiref and Channels that the package allows."""
    needs = [
        f"Python{PROJECT['requires-python']}",
        *PROJECT["dependencies"],
        *PROJECT["optional-dependencies"]["channels"],
    ]
    oldest = {name.lower(): version for name, version in (each.split(">=") for each in needs)}
    assert oldest == {name.lower(): version for name, version, _ in rows("Versions")}


def test_tested_versions():
    """The page names the Pythons and the Djangos that the project says it supports."""
    tested = {name: set(cell.split(", ")) for name, _, cell in rows("Versions")}
    for name in ("Python", "Django"):
        pattern = rf"^{'Programming Language' if name == 'Python' else 'Framework'} :: {name} :: "
        found = {re.sub(pattern, "", each) for each in PROJECT["classifiers"]}
        assert {each for each in found if re.fullmatch(r"\d\.\d+", each)} == tested[name]


if CHOICE == "postgresql":
    STOPPED = """
    try:
        async with asyncio.timeout(0.2):
            await ask("SELECT pg_sleep(3600)")
    except TimeoutError:
        print("timeout", await ask("SELECT 44"))  # on the only worker: it is free
"""

    def test_psycopg2(run_script):
        """With psycopg 2 calls and blocks run, and a query stops as its time is up."""
        default = {**DATABASES["default"], "NAME": "postgres"}
        hidden = "sys.modules['psycopg'] = None  # as if it were not installed"
        output = run_script(PROGRAM.format(default=default, first=hidden, more=STOPPED))
        driver = "'psycopg2.extensions'"
        assert output == f"({driver}, 42)\n({driver}, 43)\ntimeout ({driver}, 44)\n"

    def test_django_takes_psycopg_3(run_script):
        """Where psycopg 3 and psycopg 2 are installed, Django connects with psycopg 3."""
        default = {**DATABASES["default"], "NAME": "postgres"}
        source = PROGRAM.format(default=default, first="import psycopg2", more="")
        assert run_script(source) == "('psycopg', 42)\n('psycopg', 43)\n"


if CHOICE == "mariadb":

    def test_mysql_connector(run_script):
        """With mysql-connector-python's own engine calls and blocks run."""
        default = {
            **DATABASES["default"],
            "ENGINE": "mysql.connector.django",
            "NAME": "mysql",
            "OPTIONS": {},
        }
        output = run_script(PROGRAM.format(default=default, first="", more=""))
        driver = "'mysql.connector.connection'"
        assert output == f"({driver}, 42)\n({driver}, 43)\n"

    def test_isolation_of_both_engines(run_script):
        """Django's engine reads what is committed; that of mysql-connector reads repeatably."""
        level = '    print((await ask("SELECT @@tx_isolation"))[1])'
        default = {**DATABASES["default"], "NAME": "mysql", "OPTIONS": {}}
        for engine, expected in {
            "django.db.backends.mysql": "READ-COMMITTED",
            "mysql.connector.django": "REPEATABLE-READ",
        }.items():
            settings = {**default, "ENGINE": engine}
            output = run_script(PROGRAM.format(default=settings, first="", more=level))
            assert output.splitlines()[-1] == expected
