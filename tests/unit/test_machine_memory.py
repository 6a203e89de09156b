"""How much memory there is: the machine's, or the limit of the groups that a process is in."""

import os

import pytest

from pycounter.machine_memory import memory_bytes

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def memory(tmp_path):
    """`memory_bytes` in a system with these groups of this process, and these files with limits."""

    def memory(groups, limits):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
        for name, content in limits.items():
            file = tmp_path / "sys/fs/cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        return memory_bytes(tmp_path)

    return memory


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "1000\n"}, 1000),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "2000\n"}, 2000),
        ("0::/a/b\n", {"a/b/memory.max": "3000\n", "a/memory.max": "2000\n"}, 2000),
        ("0::/a/b\n", {"a/b/memory.max": "max\n"}, MACHINE),
        ("0::/docker/1\n", {"memory.max": "4000\n"}, 4000),
        ("0::/a\n", {"b/memory.max": "5\n"}, MACHINE),
        ("0::/a\n", {"a/memory.max": f"{MACHINE * 2}\n"}, MACHINE),
        ("3:cpu,memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "6000\n"}, 6000),
        ("4:memory:/docker/1\n", {"memory/memory.limit_in_bytes": "7000\n"}, 7000),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, MACHINE),
        ("4:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "8\n", "a/memory.max": "8\n"}, MACHINE),
        ("0::/with:colon\n", {"with:colon/memory.max": "9000\n"}, 9000),
        ("", {}, MACHINE),
    ],
)
def test_memory_is_the_machines_or_the_lowest_limit(memory, groups, limits, expected):
    assert memory(groups, limits) == expected


def test_a_system_without_groups_has_the_machines_memory(tmp_path):
    assert memory_bytes(tmp_path) == MACHINE
