"""Containers: bytes in, bytes out. Nothing here knows what a model is."""
