"""The ways in which a shard is set while it is killed: each makes another part of it run all the time."""

from tests.support.crash.arena import Scenario

SCENARIOS = [
    # A checkpoint in most lives, and a log cut into many files: folds, trims, pages that are read and written again.
    Scenario(
        name="checkpoints",
        settings={"checkpoint_log_bytes": 16_384, "checkpoint_interval_s": 0.2, "segment_bytes": 32_768},
        life_s_max=0.6,
    ),
    # No checkpoint but the one of a good end: recovery reads a log that gets longer and longer.
    Scenario(name="long_log", settings={"checkpoint_log_bytes": 1 << 30, "checkpoint_interval_s": 3600.0}),
    # Write-behind: replies overtake the disk, kills take acknowledged operations back, and clients are told which.
    Scenario(
        name="applied",
        settings={"checkpoint_log_bytes": 65_536, "segment_bytes": 65_536, "flush_interval_s": 0.05},
        level="applied",
        applied_session_clients=2,
        plain_clients=0,
    ),
    # Bounds that are reached all the time: refusals in the middle of pipelines.
    Scenario(
        name="tight_bounds",
        settings={
            "checkpoint_log_bytes": 65_536,
            "segment_bytes": 4096,
            "results_per_session_max": 300,
            "dirty_counters_max": 1024,
            "reply_bytes_max": 65_536,
        },
        session_clients=4,
    ),
]
