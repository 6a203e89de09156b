"""The coordinator: many shards as one counter service.

Everything here belongs to the event loop that made it; nothing is shared between threads but the native objects.
"""
