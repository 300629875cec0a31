#!/usr/bin/env bash
# A test that asks for "db" by name runs on the project's own database, and not on a test database.
#
# Versions: pytest 9.2.0, pytest-django 4.14.0, Django 6.1.3.
# Needs:    Python 3.12+ (set PYTHON to choose one).
# Expected: request.getfixturevalue("db") does what an argument called db does: the test has a test
#           database.
# Happens:  pytest-django makes test databases for what the selected tests name, as arguments, by
#           usefixtures or by a mark, and looks before any of them runs. Where none names a database,
#           it makes none, and "db" opens its transaction on the database of the settings.
#           With one more test selected that does name it, the same test is on the test database.
#           "transactional_db" by name is a transaction, too, in both cases.
# Hurt:     projects whose autouse fixture picks the database by a mark or an option. In CI all is
#           well; who runs one such test alone reads rows of the database at work, and what other
#           threads or connections commit stays there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pytest==9.2.0 pytest-django==4.14.0 Django==6.1.3
cd "$work"
export DJANGO_SETTINGS_MODULE=project PYTHONPATH=.

cat >project.py <<'EOF'
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "own.sqlite3"}}
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
SECRET_KEY = "for this script"
EOF

cat >test_by_name.py <<'EOF'
import pytest
from django.contrib.auth.models import Group
from django.db import connection


@pytest.fixture(params=["db", "transactional_db"])
def database(request):
    request.getfixturevalue(request.param)


def test_by_name(database, request):
    names = list(Group.objects.values_list("name", flat=True))
    kind = request.node.callspec.id
    print(f"\n{kind}: groups {names}, in a transaction: {connection.in_atomic_block}")
EOF

cat >test_by_argument.py <<'EOF'
def test_by_argument(db):
    pass
EOF

venv/bin/python -m django migrate --verbosity 0
venv/bin/python -m django shell --no-imports -c \
    'from django.contrib.auth.models import Group; Group.objects.create(name="at work")'

cat >expected <<'EOF'
-- alone
db: groups ['at work'], in a transaction: True
transactional_db: groups ['at work'], in a transaction: True
-- with a test that names db
db: groups [], in a transaction: True
transactional_db: groups [], in a transaction: True
EOF

{
    echo "-- alone"
    venv/bin/python -m pytest -q -s test_by_name.py | grep groups
    echo "-- with a test that names db"
    venv/bin/python -m pytest -q -s test_by_name.py test_by_argument.py | grep groups
} | tee seen
diff expected seen
