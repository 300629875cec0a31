from django.contrib.auth.models import Permission
from django.db.models import FETCH_RAISE


async def lazy():
    permission = await Permission.objects.afirst()
    return permission.content_type.model  # a query, and so refused


async def strict():
    permission = await Permission.objects.fetch_mode(FETCH_RAISE).afirst()
    return permission.content_type.model  # refused in your synchronous tests as well
