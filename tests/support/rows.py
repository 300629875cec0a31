"""What the tests of streams read, and what watches the cursors."""

from django.contrib.auth.models import User
from django.db import connection
from django.db.models.functions import Length
from django.db.models.query import ModelIterable

from tests.core.support import thread_name
from tests.settings import CHOICE

ROWS = 10


class Watch:
    """Sees where and when the cursors of its queryset are opened and closed."""

    def __init__(self):
        self.fetched = []
        self.opened = []
        self.closed = []
        self.gates = {}

    def rows(self):
        """Return a queryset whose rows come from a watched cursor, in the order of their names."""
        watch = self

        class Watched(ModelIterable):
            def __iter__(self):
                watch.opened.append(thread_name())
                try:
                    for number, row in enumerate(super().__iter__()):
                        if number in watch.gates:
                            watch.gates[number]()
                        watch.fetched.append(number)
                        yield row
                finally:
                    watch.closed.append(thread_name())

        queryset = User.objects.order_by("username")
        queryset._iterable_class = Watched
        return queryset

    def open(self):
        """Return how many cursors are open. Called on the thread of the cursors."""
        count = len(self.opened) - len(self.closed)
        assert server_side_cursors() in (None, count)
        return count


def server_side_cursors():
    """Return how many server-side cursors the calling thread has open; None if unknown."""
    if CHOICE != "postgresql":
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_cursors WHERE name LIKE '_django_curs_%'")
        return cursor.fetchone()[0]


def make_users():
    User.objects.bulk_create(User(username=f"user {number}") for number in range(ROWS))


NAMES = [f"user {number}" for number in range(ROWS)]


IN_ORDER = User.objects.order_by("username")


QUERYSETS = {
    "models": (IN_ORDER, lambda row: row.username),
    "values": (IN_ORDER.values("username"), lambda row: row["username"]),
    "tuples": (IN_ORDER.values_list("username", "pk"), lambda row: row[0]),
    "flat": (IN_ORDER.values_list("username", flat=True), str),
    "named": (IN_ORDER.values_list("username", named=True), lambda row: row.username),
    "raw": (
        User.objects.raw("SELECT * FROM auth_user WHERE username LIKE %s ORDER BY 5", ["user%"]),
        lambda row: row.username,
    ),
    "raw by name": (
        User.objects.raw(
            "SELECT id, username, %(extra)s AS extra FROM auth_user ORDER BY 2", {"extra": "more"}
        ),
        lambda row: row.username if row.extra == "more" else None,
    ),
    "raw without parameters": (
        User.objects.raw(
            "SELECT id AS pk, username AS name FROM auth_user ORDER BY 2",
            translations={"pk": "id", "name": "username"},
        ),
        lambda row: row.username,
    ),
    "raw with params=None": (
        User.objects.raw("SELECT * FROM auth_user ORDER BY username", params=None),
        lambda row: row.username,
    ),
    "combined": (
        User.objects.filter(username__lt="user 5")
        .union(User.objects.filter(username__gte="user 5"))
        .order_by("username"),
        lambda row: row.username,
    ),
    "reversed": (User.objects.order_by("-username").reverse(), lambda row: row.username),
    "annotated": (IN_ORDER.annotate(size=Length("username")), lambda row: row.username),
    "other database": (IN_ORDER.using("other"), lambda row: row.username),
}
