"""Requests and connections of an ASGI application."""
