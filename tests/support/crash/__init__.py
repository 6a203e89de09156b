"""A shard that is killed again and again, its clients, and the arena in which they meet."""
