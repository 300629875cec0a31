from django.http import JsonResponse

from mysite.models import Entry


async def entries(request):
    found = Entry.objects.select_related("guest").order_by("pk")
    return JsonResponse({"entries": [str(entry) async for entry in found]})
