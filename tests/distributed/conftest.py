"""Process groups for all tests of the collectives: each size is started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rank_processes import RankGroups


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankGroups]:
    with RankGroups() as groups:
        yield groups
