from django.contrib.auth import aauthenticate, alogin, alogout
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.urls import path


async def log_in(request):
    user = await aauthenticate(
        request, username=request.POST["username"], password=request.POST["password"]
    )
    if user is None:
        return HttpResponse("no such user", status=403)
    await alogin(request, user)
    return HttpResponse(f"logged in as {user.username}")


@login_required
async def account(request):
    request.user = await request.auser()  # from here on, request.user needs no query  # <--
    visits = await request.session.aget("visits", 0) + 1
    await request.session.aset("visits", visits)
    may_add = await request.user.ahas_perm("auth.add_user")
    return HttpResponse(f"{request.user.username}, visit {visits}, may add users: {may_add}")


async def log_out(request):
    await alogout(request)
    return HttpResponse("logged out")


urlpatterns = [
    path("log-in/", log_in),
    path("account/", account),
    path("log-out/", log_out),
]
