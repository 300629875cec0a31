from adrf.serializers import ModelSerializer
from adrf.views import APIView
from django.contrib.auth.models import User
from django.urls import path
from rest_framework.response import Response

from ormbridge import atomic, database_sync_to_async


class UserSerializer(ModelSerializer):
    class Meta:
        model = User
        fields = ("username", "is_staff")


class Users(APIView):
    async def get(self, request):
        users = [user async for user in User.objects.order_by("pk")]
        return Response(await UserSerializer(users, many=True).adata)

    async def post(self, request):
        serializer = UserSerializer(data=request.data)
        async with atomic():
            check = database_sync_to_async(serializer.is_valid)  # is the name taken?  # <--
            await check(raise_exception=True)
            await serializer.asave()
        return Response(await serializer.adata, status=201)


urlpatterns = [path("api/users/", Users.as_view())]
