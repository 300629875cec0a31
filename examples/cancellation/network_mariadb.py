DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.mysql",
        "NAME": "mysite",
        "OPTIONS": {
            "connect_timeout": 5,  # seconds, to make a connection
            "read_timeout": 30,  # seconds, until the server sends something
            "write_timeout": 30,  # seconds, until it takes something
        },
    },
}
