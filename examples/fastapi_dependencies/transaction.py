from typing import Annotated

from django.contrib.auth.models import User
from fastapi import APIRouter, Depends

from ormbridge import atomic


async def transaction():
    async with atomic():
        yield


InTransaction = Annotated[None, Depends(transaction, scope="function")]  # <--
router = APIRouter()


@router.post("/api/users/{username}", status_code=201)
async def sign_up(username: str, _: InTransaction):
    user = await User.objects.acreate(username=username)
    return {"id": user.pk}
