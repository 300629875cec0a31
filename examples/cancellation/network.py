DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "mysite",
        "OPTIONS": {
            "connect_timeout": 5,  # seconds, to make a connection
            "tcp_user_timeout": 10_000,  # milliseconds, until what was sent has arrived
            "keepalives_idle": 10,  # seconds of silence, until the network is asked
            "keepalives_interval": 5,  # seconds until it is asked again
            "keepalives_count": 2,  # questions without an answer, and the connection is broken
        },
    },
}
