"""Tables of `bench.peers`: ratios, verdicts, and what is printed."""

import json

import pytest

from bench.peers.results import as_json, as_markdown
from bench.peers.table import Goal, Row, Table


@pytest.fixture
def table() -> Table:
    redis = Row("pipeline 1", "Redis", {"per_second": 1000.0, "cpu_us": 8.0})
    ours = Row("pipeline 1", "ours", {"per_second": 2500.0, "cpu_us": 2.0, "p99_us": 1234.5})
    ours.goals = [
        Goal(what="CPU to Redis", ratio=0.25, at_most=0.2),
        Goal(what="speed to Redis", ratio=2.5, at_least=2.5),
    ]
    alone = Row("pipeline 16", "ours", {"per_second": 9.0})
    return Table(
        name="p0", title="a title", workload="Work.", rows=[redis, ours, alone], reference="Redis", notes=["A note."]
    )


@pytest.mark.parametrize(
    ("bounds", "ratio", "share", "met"),
    [
        ({"at_most": 0.7}, 0.7, None, True),
        ({"at_most": 0.7}, 0.71, None, False),
        ({"at_least": 3.0}, 3.0, None, True),
        ({"at_least": 3.0}, 2.99, None, False),
        ({"at_least": 3.0}, 2.0, 0.9, True),
        ({"at_least": 3.0}, 2.0, 0.89, False),
        ({"at_least": 1.0, "at_most": 2.0}, 2.5, None, False),
    ],
)
def test_goal_is_met_at_its_bound_and_at_the_ceiling(bounds, ratio, share, met):
    goal = Goal(what="speed", ratio=ratio, ceiling_share=share, **bounds)
    assert goal.met is met
    assert str(goal).endswith(": met" if met else ": MISSED")


def test_markdown(table):
    assert table.markdown().split("\n") == [
        "## p0: a title",
        "",
        "Work.",
        "",
        "| case | subject | operations/s | speed to Redis | p99 us | CPU us/op | CPU to Redis | goal |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| pipeline 1 | Redis | 1,000 | 1.00x | | 8.000 | 1.00x | |",
        "| pipeline 1 | ours | 2,500 | 2.50x | 1,234 | 2.000 | 0.25x "
        "| CPU to Redis 0.25x, goal <= 0.2x: MISSED; speed to Redis 2.5x, goal >= 2.5x: met |",
        "| pipeline 16 | ours | 9 | | | | | |",
        "",
        "A note.",
    ]


def test_results_name_what_was_missed(table):
    text = as_markdown({"CPU": "a kind"}, [table])
    assert "- CPU: a kind\n" in text
    assert "1 of 2 goals met.\n\nMissed:\n\n- p0, pipeline 1: CPU to Redis 0.25x, goal <= 0.2x: MISSED\n" in text
    told = json.loads(as_json({"CPU": "a kind"}, [table]))
    assert [row["figures"].get("cpu_ratio") for row in told["tables"][0]["rows"]] == [1.0, 0.25, None]
    assert [goal["met"] for goal in told["tables"][0]["rows"][1]["goals"]] == [False, True]
