import strawberry
import strawberry_django
from django.contrib.auth.models import Group, User
from django.urls import path
from strawberry.django.views import AsyncGraphQLView
from strawberry_django.optimizer import DjangoOptimizerExtension

from ormbridge import atomic


@strawberry_django.type(Group)
class GroupType:
    name: strawberry.auto


@strawberry_django.type(User)
class UserType:
    username: strawberry.auto
    groups: list[GroupType]


@strawberry.type
class Query:
    users: list[UserType] = strawberry_django.field()

    @strawberry.field
    async def number_of_users(self) -> int:
        return await User.objects.acount()


@strawberry.type
class Mutation:
    @strawberry.mutation
    async def sign_up(self, username: str) -> UserType:
        async with atomic():  # <--
            user = await User.objects.acreate(username=username)
            team = await Group.objects.acreate(name=f"team of {username}")
            await user.groups.aadd(team)
        return user


schema = strawberry.Schema(query=Query, mutation=Mutation, extensions=[DjangoOptimizerExtension])
urlpatterns = [path("graphql/", AsyncGraphQLView.as_view(schema=schema))]
