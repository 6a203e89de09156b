"""The coordinator: many shards as one counter service.

Read in this order. What is known of shards: `shard_handle` is one of them and `shard_set` all; `shard_health` and
`load_balancer` say which serves what. What is asked of them: `shard_routes` is the interface of everything that needs
several; `totals` (with `total` and `shared_loads`) reads, `removals` and `bulk_removals` take away (`settling` repeats
what they send), `listing` lists, and `increments` counts. `client` joins all this for users (`connecting`,
`blocking_client`), and `topology_watch` is how it learns of changes. Shards are reached directly or through a
coordinator, by a `passage`.

The server for raw clients: `coordinator_server` is the process, `supervisor_pipe` what it hears and says, `routing`
what is behind its sockets. The hot path is the native `Router`, fed by `coordinator_protocol` and `shard_links`; what
takes all shards comes to `host_requests` (with `scan_cursors`), what no shard takes to `replay_log` and `replayer`.
`cache_warming` remembers what was hot.

Everything here belongs to the event loop that made it; nothing is shared between threads but the native objects.
"""
