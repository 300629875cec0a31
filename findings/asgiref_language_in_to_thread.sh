#!/usr/bin/env bash
# asyncio.to_thread() loses Django's language: the text comes in the default one.
#
# Versions: Django 6.1.3 with asgiref 3.12.0 and 3.13.0, against asgiref 3.11.1; Python 3.13.
# Needs:    Python 3.12+ (set PYTHON to choose one).
# Expected: asyncio.to_thread() copies the context, and asgiref keeps a Local in a context variable;
#           so what translation.activate() chose is in force in the thread, as it is after
#           sync_to_async().
# Happens:  so it was up to asgiref 3.11. Since 3.12 a Local's data carry the thread that set them,
#           and another thread does not see them unless asgiref itself took them there.
#           In to_thread() the language is that of the settings, without an error.
# Hurt:     whoever renders a mail or a page by to_thread(): after a minor upgrade the reader gets it
#           in the wrong language (likewise the time zone, the urlconf, any Local of one's own).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet Django==6.1.3
cd "$work"

cat >program.py <<'EOF'
import asyncio
import importlib.metadata

import django
from asgiref.sync import sync_to_async
from django.conf import settings

settings.configure(LANGUAGE_CODE="en", TIME_ZONE="UTC", USE_TZ=True)
django.setup()
from django.utils import timezone, translation  # noqa: E402


def chosen():
    return translation.get_language(), timezone.get_current_timezone_name()


async def main():
    translation.activate("de")
    timezone.activate("Asia/Tokyo")
    version = importlib.metadata.version("asgiref")
    print(version, "sync_to_async:", *await sync_to_async(chosen)())
    print(version, "to_thread:", *await asyncio.to_thread(chosen))


asyncio.run(main())
EOF

cat >expected <<'EOF'
3.11.1 sync_to_async: de Asia/Tokyo
3.11.1 to_thread: de Asia/Tokyo
3.12.0 sync_to_async: de Asia/Tokyo
3.12.0 to_thread: en UTC
3.13.0 sync_to_async: de Asia/Tokyo
3.13.0 to_thread: en UTC
EOF

for version in 3.11.1 3.12.0 3.13.0; do
    venv/bin/pip install --quiet asgiref==$version
    venv/bin/python program.py
done | tee seen
diff expected seen
