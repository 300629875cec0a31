from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from ormbridge import stats

settings.configure()

for refused in [
    ["MAX_THREADS"],
    {"MAX_THREAD": 10},
    {"MAX_THREADS": 0},
    {"MAX_THREADS": "10"},
    {"TIMEOUT": -1},
    {"MAX_IDLE": None},
    {"HTTP_LEASE": "session"},
    {"RESET": print},
    {"RESET": "greetings.clear_session"},
]:
    with override_settings(ORMBRIDGE=refused):
        try:
            stats()  # <--
        except ImproperlyConfigured as error:
            print(error)
