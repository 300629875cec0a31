"""Tests with a browser that query as well: Playwright beside Django."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import SynchronousOnlyOperation
from django.core.management import call_command
from django.db import connection
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path
from playwright.async_api import async_playwright
from playwright.sync_api import sync_playwright

from tests.demo.conftest import chromium
from tests.support.ways import count_and_close


def beside_playwright():
    with sync_playwright(), ThreadPoolExecutor() as pool:
        with pytest.raises(SynchronousOnlyOperation, match=r"^You cannot call this from an async"):
            User.objects.count()
        with pytest.raises(SynchronousOnlyOperation):
            call_command("flush", interactive=False, verbosity=0)
        assert pool.submit(count_and_close).result() == 1
    assert count_and_close() == 1


def test_query_beside_playwright(transactional_db):
    """Playwright's synchronous API has a loop on its thread until it is stopped."""
    # On a thread of its own: the browser of the demo's tests may be started on the first one.
    with ThreadPoolExecutor() as pool:
        pool.submit(User.objects.create, username="ada").result()
        pool.submit(beside_playwright).result()
        pool.submit(lambda: connection.close()).result()


@pytest.fixture(scope="session")
def static_files():
    """Set what a live server looks for as it starts."""
    with override_settings(STATIC_URL="/static/", STATIC_ROOT=""):
        yield


@pytest.mark.usefixtures("static_files", "async_transactional_db")
async def test_query_beside_playwrights_async_api(live_server, settings):
    """With the async one, test and view see the same rows."""

    def names(request):
        return HttpResponse(", ".join(user.username for user in User.objects.all()))

    settings.ROOT_URLCONF = (path("", names),)
    settings.ALLOWED_HOSTS = ["*"]
    await User.objects.acreate(username="ada")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(**chromium())
        page = await browser.new_page()
        await page.goto(live_server.url)
        assert await page.inner_text("body") == "ada"
        assert await User.objects.acount() == 1
        await browser.close()
