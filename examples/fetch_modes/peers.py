from django.contrib.auth.models import Permission
from django.db.models import FETCH_PEERS

from ormbridge import database_sync_to_async


@database_sync_to_async
def kinds():
    permissions = Permission.objects.fetch_mode(FETCH_PEERS).filter(codename__endswith="_user")
    return {permission.codename: permission.content_type.model for permission in permissions}
