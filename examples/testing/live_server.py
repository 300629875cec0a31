from urllib.request import urlopen

from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import LiveServerTestCase, override_settings
from django.urls import path

from ormbridge import database_sync_to_async


async def greet(request):
    user = await database_sync_to_async(User.objects.get)()
    return HttpResponse(f"Hello {user.username}")


urlpatterns = [path("", greet)]


@override_settings(ROOT_URLCONF=__name__)
class GreetingTest(LiveServerTestCase):
    def test_greeting(self):
        User.objects.create(username="ada")
        with urlopen(self.live_server_url) as response:
            self.assertEqual(response.read(), b"Hello ada")
