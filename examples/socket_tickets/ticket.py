from urllib.parse import parse_qs

from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import AnonymousUser, User
from django.core.signing import BadSignature, TimestampSigner
from django.http import JsonResponse

signer = TimestampSigner(salt="ticket of a socket")


@login_required
async def ticket(request):
    user = await request.auser()
    return JsonResponse({"ticket": signer.sign_object(str(user.pk))})


class TicketMiddleware:
    def __init__(self, application):
        self.application = application

    async def __call__(self, scope, receive, send):
        (signed,) = parse_qs(scope["query_string"].decode()).get("ticket", [""])[:1]
        try:
            pk = signer.unsign_object(signed, max_age=30)  # seconds
            user = await User.objects.aget(pk=pk, is_active=True)
        except (BadSignature, User.DoesNotExist):
            user = AnonymousUser()
        return await self.application({**scope, "user": user}, receive, send)
