"""A cluster on one machine: one supervisor process, and the shards, replicas and coordinators that it keeps running.

Which file holds what: `supervisor` starts, watches and stops them; `member` is one of them as the supervisor sees it,
`child_process` its lives, `health_probe` its health, `process_state` the rules, which need no process; `child_commands`
what they are started with; `cluster_folder` is what is on disk, `cluster_view` what is published, `control` how the
command line asks.
"""
