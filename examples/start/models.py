from django.db import models


class Guest(models.Model):
    name = models.CharField(max_length=100, unique=True)

    def __str__(self):
        return self.name


class Entry(models.Model):
    guest = models.ForeignKey(Guest, on_delete=models.CASCADE)
    text = models.CharField(max_length=200)

    def __str__(self):
        return f"{self.guest}: {self.text}"
