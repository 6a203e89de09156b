"""A deterministic simulation of clients, shards and all that is between them; one seed is one history.

Real are the client library, the protocol and the engine of shards with its log and its recovery. Simulated are the
event loop's clock, the network, the disk, and the moments at which processes die. Reading order: `virtual_loop`,
`network`, `shard_host`, `ledger` (what must be true), `clients` (what is done), `trouble` (what goes wrong), `world`.

`python -m tests.simulation SEED` replays one seed and prints its history.
"""
