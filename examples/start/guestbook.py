import pytest

from mysite.models import Guest
from mysite.signing import sign

pytestmark = pytest.mark.usefixtures("async_db")  # <--


async def test_entry_is_shown(async_client):
    await sign("Ada", "Hello")
    response = await async_client.get("/")
    assert response.json() == {"entries": ["Ada: Hello"]}


async def test_nothing_is_left_of_an_entry_without_text():
    with pytest.raises(ValueError, match="needs a text"):
        await sign("Ada", "")
    assert await Guest.objects.acount() == 0
