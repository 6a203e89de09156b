"""PyCounter: counters that count every acknowledged increment exactly once, in memory, on disk or on a server."""
