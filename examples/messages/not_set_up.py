from django.conf import settings
from django.core.exceptions import AppRegistryNotReady, ImproperlyConfigured


def import_a_model():
    from django.contrib.auth.models import User

    return User


if __name__ == "__main__":
    try:
        import_a_model()
    except ImproperlyConfigured as error:
        print(f"ImproperlyConfigured: {error}")
    settings.configure()
    try:
        import_a_model()
    except AppRegistryNotReady as error:
        print(f"AppRegistryNotReady: {error}")
