from django.contrib.auth.models import Group, User
from django.urls import path
from ninja import ModelSchema, NinjaAPI, Status

from ormbridge import atomic

api = NinjaAPI()


class UserOut(ModelSchema):
    class Meta:
        model = User
        fields = ("username", "is_staff")


@api.get("/users", response=list[UserOut])
async def users(request):
    return [user async for user in User.objects.order_by("pk")]  # a list, no queryset  # <--


@api.post("/users/{username}", response={201: UserOut})
async def sign_up(request, username: str):
    async with atomic():
        user = await User.objects.acreate(username=username)
        team = await Group.objects.acreate(name=f"team of {username}")
        await user.groups.aadd(team)
    return Status(201, user)


urlpatterns = [path("api/", api.urls)]
