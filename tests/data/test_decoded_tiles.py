"""When training tiles are held decoded in memory."""

import re

import pytest

from bcss_jax.data.decoded_tiles import decoded_bytes, free_memory, holds


@pytest.mark.parametrize(
    "needed, share, processes, free, held, why",
    [
        (2 * 10**9, 0.25, 1, 8 * 10**9, True, "at most 2.00 GB = config.data.memory_share 0.25 of 8.00 GB free"),
        (2 * 10**9 + 1, 0.25, 1, 8 * 10**9, False, "more than 2.00 GB"),
        (2 * 10**9, 0.5, 4, 8 * 10**9, False, "more than 1.00 GB = .* 8.00 GB free memory / 4 processes"),
        (1, 0.0, 1, 8 * 10**9, False, "memory_share is 0"),
        (1, 0.25, 1, None, False, "does not tell"),
    ],
)
def test_tiles_are_held_if_they_take_at_most_their_share(needed, share, processes, free, held, why):
    found, reason = holds(needed, share, processes, free)
    assert found == held
    assert re.search(why, reason), reason


def test_the_size_of_decoded_tiles():
    assert decoded_bytes(10, (224, 200)) == 10 * 224 * 200 * 4


@pytest.mark.parametrize(
    "groups, expected",
    [
        ({}, 4096_000),
        ({"memory.max": "max", "memory.current": "5"}, 4096_000),
        ({"memory.max": "3000000", "memory.current": "1000000"}, 2000_000),
        ({"memory.max": "3000000", "memory.current": "4000000"}, 0),
        ({"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "7"}, 4096_000),
        ({"memory/memory.limit_in_bytes": "1000", "memory/memory.usage_in_bytes": "7"}, 993),
    ],
)
def test_free_memory_is_that_of_the_machine_or_of_the_container(tmp_path, groups, expected):
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  4000 kB\nHugePages_Total:   0\n")
    for name, text in groups.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert free_memory(tmp_path, tmp_path) == expected


def test_free_memory_of_other_systems_is_unknown(tmp_path):
    assert free_memory(tmp_path, tmp_path) is None
