DATABASES = {
    "default": {"ENGINE": "django.db.backends.postgresql", "NAME": "mysite"},
}
ORMBRIDGE = {"GREEN": True}  # <--
