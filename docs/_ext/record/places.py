"""Where a reader puts an example: what stands above it, and how the tests paste it.

Told from the source, so that no list has to be kept. A program sets Django up itself. All else goes
into a project as ``startproject mysite .`` makes it: what defines ``urlpatterns`` is a URLconf,
what defines ``application`` is what servers start, and so on. For views, consumers and tests
``docs/_scaffold/full`` has what is to be around them in a file that runs by itself.
"""

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2]

#: What is in a source, and the file of a project that it is then: the first that fits.
_FILES = (
    (r"^application = ", "mysite/asgi.py"),
    (r"^urlpatterns = ", "mysite/urls.py"),
    (r"^DATABASES = ", "mysite/settings.py"),
    (r"^class \w*Consumer\(", "mysite/consumers.py"),
    (r"^# %%", "notebook.ipynb"),
)
#: What its source does not tell.
_ELSEWHERE = {
    "agents/mcp_server": "mcp_server.py",
    "bots/telegram_bot": "telegram_bot.py",
    "celery/tasks": "tasks.py",
    "commands/greet": "mysite/management/commands/greet.py",
    "fastapi/main": "main.py",
    "start/guestbook": "test_guestbook.py",
    "tracing/sentry_settings": "mysite/settings.py",
    "workers/scheduler": "scheduler.py",
}
#: What only PostgreSQL understands.
_SERVER = (
    r"backends\.postgresql|^import psycopg$|SHOW search_path|\bpg_|sqlstate|^def reset_tenant"
    r"|green=True"
)
#: What is in a source, and what must then be there.
_NEEDS = (
    (r"^(from|import) ormbridge|async_\w*db\b|\[\"ormbridge\"|^ORMBRIDGE = ", "ormbridge"),
    (r"^(from|import) channels", "channels"),
    (r"^def test_\w+\((?!self)|^async def test_|^class \w+Test\(", "pytest-django"),
    (r"mark\.asyncio|^import pytest_asyncio", "pytest-asyncio"),
    *((rf"^\w+ {each}", each) for each in ("adrf", "anyio", "apscheduler", "celery", "fastapi")),
    (r"^from websockets", "websockets"),
    (r"^from ninja", "django-ninja"),
    (r"^import strawberry_django", "strawberry-graphql-django"),
    (r"^import sentry_sdk", "sentry-sdk"),
    (r"instrumentation\.django", "opentelemetry-instrumentation-django[asgi]"),
    (r"instrumentation\.psycopg", "opentelemetry-instrumentation-psycopg"),
    (r"opentelemetry\.sdk", "opentelemetry-sdk"),
    (r"^from telegram", "python-telegram-bot"),
    (r"^from mcp", "mcp"),
    (r"^def reset_tenant|django_tenants", "django-tenants"),
    (r"channels_redis", "channels-redis, Redis"),
    (r"^from django\.tasks", "Django 6.0"),
    (r"FETCH_", "Django 6.1"),
    (rf"{_SERVER}|^from psycopg|instrumentation\.psycopg", "psycopg"),
    (r"\"pool\": ", "psycopg_pool"),
    (r"\"GREEN\": |green=True", "greenlet"),
    (r"backends\.mysql|^import MySQLdb", "mysqlclient"),
    (_SERVER, "PostgreSQL"),
    (r"prepared_in_another_session", "PgBouncer in between"),
    (r"backends\.mysql|^import MySQLdb", "MariaDB or MySQL"),
    (r"my\.cnf", "a my.cnf that leads there"),
)


@dataclass(frozen=True)
class Place:
    """*file* in an empty folder or a project, *command* that runs it, what it needs and leaves."""

    file: str
    command: str
    needs: tuple[str, ...]
    leaves: tuple[str, ...]

    @property
    def by_itself(self) -> bool:
        """Whether it runs in an empty folder."""
        return self.command.endswith(f"python {self.file}")

    def __str__(self) -> str:
        """Return it in words, with code in back quotes."""
        said = f"Goes into `{self.file}`"
        if self.command:
            said = f"{said}: `{self.command}`"
        if self.by_itself:
            said = f"Runs by itself: `{self.command}`"
        said += f". Needs {', '.join(self.needs) or 'Django'}."
        return said + f" Leaves {', '.join(self.leaves)} behind." * bool(self.leaves)


def place(name: str, source: str) -> Place:
    """Return where the example *name* goes."""
    stem = name.rpartition("/")[2]
    needs = tuple(what for pattern, what in _NEEDS if re.search(pattern, source, re.MULTILINE))
    if name in _ELSEWHERE:
        return Place(_ELSEWHERE[name], "", needs, ())
    starts = "settings.configure(" in source or '\nif __name__ == "__main__":' in source
    if starts and "pytest" not in source:
        variables = "ASGI_THREADS=10 " * ("environ['ASGI_THREADS']" in source)
        leaves = tuple(dict.fromkeys(re.findall(r'"NAME": "(\w+\.sqlite3)"', source)))
        if "execute_from_command_line" in source:  # it checks the settings, and connects to nothing
            needs, leaves = tuple(each for each in needs if each != "PostgreSQL"), ()
        return Place(f"{stem}.py", f"{variables}python {stem}.py", needs, leaves)
    if "pytest-django" in needs:
        return Place(f"test_{stem}.py", "pytest --ds=mysite.settings", needs, ())
    fits = (file for pattern, file in _FILES if re.search(pattern, source, re.MULTILINE))
    return Place(next(fits, f"mysite/{stem}.py"), "", needs, ())


def full_path(name: str, source: str) -> str:
    """Return where the full file of the example *name* is on the site."""
    file = place(name, source).file
    return f"full/{name.partition('/')[0]}/{file if '/' not in file else Path(name).name + '.py'}"


def full_file(name: str, source: str) -> str | None:
    """Return the example *name* with all that it needs in one file, or nothing if that is none."""
    found, stem = place(name, source), name.rpartition("/")[2]
    kind = "tests" if found.command else found.file.removeprefix("mysite/").removesuffix(".py")
    application = "BridgeMiddleware(get_asgi_application())"
    if kind == "asgi":
        source += "\n\nfrom django.http import HttpResponse\nfrom django.urls import path\n"
        source += '\nurlpatterns = [path("", lambda request: HttpResponse("Hello"))]\n'
        kind, application = "urls", "application"
    path = DOCS / "_scaffold" / "full" / f"{kind}.txt"
    page = DOCS / "guide" / f"{name.partition('/')[0].replace('_', '-')}.md"
    if found.by_itself or not (path.is_file() and page.is_file()) or "PostgreSQL" in found.needs:
        return None
    words = {
        "dependencies": ", ".join(
            f'"{each}"' for each in dict.fromkeys(("ormbridge", *found.needs))
        ),
        "database": f'{{"ENGINE": "django.db.backends.sqlite3", "NAME": "{stem}.sqlite3"}}',
        "consumer": "".join(re.findall(r"^class (\w*Consumer)\(", source, re.MULTILINE)),
        "application": application,
        "name": name,
        "stem": stem,
        "block": source,
    }
    return re.sub(r"@(\w+)@", lambda word: words[word[1]], path.read_text(encoding="utf-8"))
