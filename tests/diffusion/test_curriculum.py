"""The block-size ladder as data."""

import pytest

from difflm.diffusion.curriculum import BlockCurriculum, Stage, lookahead_at
from difflm.errors import ConfigError


def test_stages_follow_each_other() -> None:
    ladder = BlockCurriculum((Stage(1, 10), Stage(4, 5), Stage(None, 20), Stage(32, 5)))
    assert ladder.total_tokens == 40
    assert [ladder.stage_at(tokens) for tokens in (0, 9, 10, 14, 15, 34, 35, 39, 40, 99)] == [
        0, 0, 1, 1, 2, 2, 3, 3, 3, 3,
    ]  # fmt: skip


def test_bad_stages() -> None:
    with pytest.raises(ConfigError, match="tokens: 0"):
        Stage(4, 0)
    with pytest.raises(ConfigError, match="block_size: 0"):
        Stage(0, 4)
    with pytest.raises(ConfigError, match="no stages"):
        BlockCurriculum(())


def test_the_view_widens_linearly_and_ends_open() -> None:
    views = [lookahead_at(tokens, annealing_tokens=100, block_size=8) for tokens in (0, 12, 13, 50, 99, 100, 500)]
    assert views == [0, 0, 1, 4, 7, None, None]
    assert lookahead_at(0, annealing_tokens=0, block_size=8) is None
