import os

from django.core.asgi import get_asgi_application

from ormbridge import BridgeMiddleware

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

application = BridgeMiddleware(get_asgi_application())  # <--
