"""Benches: `make bench`, and the comparison with peers, `make bench-peers`."""
