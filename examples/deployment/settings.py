import os

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "mysite",
        "USER": "postgres",
        "HOST": os.environ.get("DATABASE_HOST", "127.0.0.1"),
        "PORT": os.environ.get("DATABASE_PORT", "16432"),
        # A worker keeps its connection to PgBouncer for the next request.
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
        # In transaction mode the next rows may be asked of another connection.
        "DISABLE_SERVER_SIDE_CURSORS": True,
    }
}
REDIS = {
    "address": os.environ.get("REDIS_URL", "redis://127.0.0.1:16379"),
    # redis-py 8 gives up after 5 s, as long as the layer waits for a message.
    "socket_timeout": None,
}
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        "CONFIG": {"hosts": [REDIS]},
    }
}

# The bound of a process; ASGI_THREADS in the environment wins over it.
ORMBRIDGE = {"MAX_THREADS": 10}
