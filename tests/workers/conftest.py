"""One Ray cluster for all tests of the workers: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from workers import ray_connection


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    # A GPU to be reserved; whether it exists is no matter of Ray's.
    ray_connection.connect(cpus=4, num_gpus=1)
    yield
    ray_connection.disconnect()
