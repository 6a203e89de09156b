"""What several test folders stand on: shard processes, raw sockets, and the checker of crash tests."""
