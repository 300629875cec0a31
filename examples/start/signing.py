from mysite.models import Entry, Guest
from ormbridge import atomic


async def sign(name, text):
    async with atomic():  # <--
        guest, _ = await Guest.objects.aget_or_create(name=name)
        if not text:
            raise ValueError("an entry needs a text")
        await Entry.objects.acreate(guest=guest, text=text)
