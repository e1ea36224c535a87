"""What only Ray can show: code that travels, servers that are actors, what Ray says of itself."""

from __future__ import annotations

import importlib.util
import pickle
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import host_samples
import pytest
import torch
from host_faults import FaultySpec
from host_samples import CountThreads, mlp, parameters, shard, spec
from torch import nn

from robust_agg.online.named import VClip
from workers import (
    HostError,
    HostSpec,
    InlineHosts,
    LogicalWorker,
    RayHosts,
    ray_compat,
    ray_connection,
)

pytestmark = pytest.mark.usefixtures("ray_cluster")

ATTACK = """
from attacks import DataAttack

class Zero(DataAttack):
    def __call__(self, inputs, targets, generator):
        return 0 * inputs, targets
"""


@pytest.fixture
def their_module(tmp_path: Path) -> ModuleType:
    """A module of the user's that no other process can import."""
    (tmp_path / "their_attack.py").write_text(ATTACK)
    found = importlib.util.spec_from_file_location("their_attack", tmp_path / "their_attack.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["their_attack"] = module
    found.loader.exec_module(module)
    return module


def test_a_users_code_travels_by_value(their_module: ModuleType) -> None:
    settings = spec(workers=(LogicalWorker(0, shard(0), their_module.Zero()),))
    with InlineHosts([settings]) as here:
        (expected,) = here.collect(0, parameters(mlp)).updates
    with RayHosts([settings], by_value=[their_module]) as there:
        (found,) = there.collect(0, parameters(mlp)).updates
    assert torch.equal(found.row, expected.row)
    with pytest.raises(
        HostError, match=r"host 0 cannot be built: .*No module named 'their_attack'"
    ):
        RayHosts([settings])


def test_a_host_that_cannot_be_built_is_an_error_at_once() -> None:
    def broken() -> nn.Module:
        raise OSError("no such checkpoint")

    with pytest.raises(HostError, match=r"RayHosts: host 0 cannot be built: .*no such checkpoint"):
        RayHosts([spec(model=broken)])


def test_threads_are_the_specifications_and_gpus_are_shared() -> None:
    settings = spec(estimator=CountThreads(), threads=2)
    with RayHosts(settings.split(2), num_gpus=0.5) as transport:
        found = transport.collect(0, parameters(mlp)).updates
        assert {float(update.row[0]) for update in found} == {2.0}
        with pytest.raises(HostError, match=r"host 0 did not start within 1 s"):
            RayHosts([spec()], num_gpus=0.5, start_timeout=1.0)


def test_a_server_may_be_an_actor_itself() -> None:
    import ray

    class Serve:
        def round(self, packed: bytes, path: Sequence[str], weights: bytes) -> dict[int, bytes]:
            sys.path += [folder for folder in path if folder not in sys.path]
            specs = pickle.loads(packed)
            with RayHosts(specs, deadline=100.0) as transport:
                found = transport.collect(0, pickle.loads(weights)).updates
            assert ray.is_initialized(), "what the actor lives on is not the transport's to close"
            return {update.sender: pickle.dumps(update.row) for update in found}

    specs = spec().split(2)
    with InlineHosts(specs) as here:
        expected = {u.sender: u.row for u in here.collect(0, parameters(mlp)).updates}
    remote: Any = ray.remote(num_cpus=1)(Serve)
    server = remote.remote()
    packed = ray_compat.pickled(specs, [host_samples])
    found = ray.get(
        server.round.remote(packed, sys.path, pickle.dumps(parameters(mlp))), timeout=200
    )
    ray.kill(server)
    assert found.keys() == expected.keys()
    assert all(torch.equal(pickle.loads(row), expected[i]) for i, row in found.items())


class TestRestarts:
    """Hosts that died and are built anew."""

    @staticmethod
    def second_dies_in_round_1(**settings: Any) -> list[HostSpec]:
        """Two hosts of three workers each."""
        first, second = spec(**settings).split(2)
        return [first, FaultySpec.of(second, {1: "kill"})]

    def test_a_dead_host_comes_back_with_nothing_in_its_memory(self) -> None:
        dying = self.second_dies_in_round_1(estimator=VClip())
        with RayHosts(dying, deadline=100.0, restarts=1) as transport:
            first = {u.sender: u.row for u in transport.collect(0, parameters(mlp)).updates}
            lost = transport.collect(1, parameters(mlp))
            assert {(r.sender, r.keeps_place) for r in lost.refused} == {
                (sender, False) for sender in (3, 4, 5)
            }
            assert sorted(transport.state()) == [0, 1, 2]
            end = time.monotonic() + 100
            while (back := transport.collect(0, parameters(mlp))).refused:
                assert time.monotonic() < end
                assert {r.reason for r in back.refused} == {"lost: host 1 died in round 1"}
                time.sleep(0.1)
            rows = {update.sender: update.row for update in back.updates}
            assert all(torch.equal(rows[i], first[i]) for i in (3, 4, 5))
            assert not any(torch.equal(rows[i], first[i]) for i in (0, 1, 2))
            transport.load_state({})
            assert transport.state() == {}

    def test_a_host_that_dies_again_and_again_is_given_up(self) -> None:
        specs: list[HostSpec] = list(spec().split(2))
        specs[1] = FaultySpec.of(specs[1], dict.fromkeys(range(10_000), "exit"))
        with RayHosts(specs, deadline=100.0, restarts=1) as transport:
            wanted = time.monotonic() + 100
            seen: set[str] = set()
            round = 0
            while len(seen) < 2:
                assert time.monotonic() < wanted
                refused = transport.collect(round, parameters(mlp)).refused
                seen |= {r.reason.partition(": on ")[0] for r in refused}
                round += 1
                time.sleep(0.1)
            assert not transport._coming()
            last = transport.collect(round, parameters(mlp)).refused
            assert {r.reason for r in last} == {max(seen)}

    def test_a_round_waits_for_who_is_coming_where_the_others_are_too_few(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        hold = tmp_path / "not yet"

        def slow() -> nn.Module:
            while hold.exists():
                time.sleep(0.01)
            return mlp()

        dying = self.second_dies_in_round_1(model=slow)
        with RayHosts(dying, deadline=100.0, quorum=4, restarts=1) as transport:
            transport.collect(0, parameters(mlp))
            hold.touch()
            assert not transport.collect(1, parameters(mlp)).quorum_met

            transport.deadline = 5.0
            patient = transport.collect(2, parameters(mlp))
            assert patient.seconds >= 5.0
            assert caplog.messages == [
                "host 1 died in round 1, and its workers (3, 4, 5) with it",
                "round 2 waits for hosts that are late or built anew: 3 of 4 rows can be had",
            ]
            assert [u.sender for u in patient.updates] == [0, 1, 2], "asked with time of their own"
            few = transport.collect(3, parameters(mlp), active=[0, 1, 3, 4, 5], others=2)
            assert few.quorum_met
            assert few.seconds < 5.0, "two rows and two of others are four"
            none = transport.collect(4, parameters(mlp), active=[0, 1])
            assert not none.quorum_met
            assert none.seconds < 5.0, "nobody that is asked can come"

            transport.deadline = None
            hold.unlink()
            assert len(transport.collect(5, parameters(mlp)).updates) == 6
            assert caplog.messages[-1].startswith("host 1 is built anew on ")

    def test_why_a_host_does_not_come_back_is_in_the_ledger(self, tmp_path: Path) -> None:
        gone = tmp_path / "gone"

        def model() -> nn.Module:
            if gone.exists():
                raise OSError("no such checkpoint")
            return mlp()

        dying = self.second_dies_in_round_1(model=model)
        with RayHosts(dying, deadline=100.0, quorum=6, restarts=2) as transport:
            transport.collect(0, parameters(mlp))
            gone.touch()
            transport.collect(1, parameters(mlp))
            for number in (2, 3, 4):
                refused = transport.collect(number, parameters(mlp)).refused
                assert {r.sender for r in refused} == {3, 4, 5}
                (why,) = {r.reason for r in refused}
                assert why == "lost: host 1 is not built anew: OSError: no such checkpoint"
            assert not transport._coming(), "twice and no more"

    def test_restarts_are_a_count(self) -> None:
        with pytest.raises(ValueError, match="restarts must be an integer >= 0, found -1"):
            RayHosts([spec()], restarts=-1)


class TestCompatibility:
    """The smoke test of what may change from one Ray to the next."""

    def test_what_is_put_in_the_place_of_rays_own_is_there(self) -> None:
        import ray._private.ray_constants as constants
        import ray._private.utils as utils
        import ray._private.worker as worker

        assert constants.NUM_REDIS_GET_RETRIES > 1
        with ray_compat.one_try():
            assert constants.NUM_REDIS_GET_RETRIES == 1
        assert constants.NUM_REDIS_GET_RETRIES > 1
        assert callable(utils.set_sigterm_handler)
        assert callable(worker.print_to_stdstream)

    def test_sizes_are_known_without_fetching(self) -> None:
        import ray

        small, large = ray.put(bytes(10)), ray.put(bytes(1 << 20))
        assert 1 << 20 <= ray_compat.object_bytes(large) <= (1 << 20) + 1000
        assert ray_compat.object_bytes(small) <= 1000

    def test_errors_are_told_apart(self) -> None:
        import os

        import ray

        class Fails:
            def fail(self) -> None:
                raise LookupError("first line\nsecond line")

            def die(self) -> None:
                os._exit(1)

        remote: Any = ray.remote(num_cpus=0)(Fails)
        actor = remote.remote()
        with pytest.raises(ray.exceptions.RayError) as failed:
            ray.get(actor.fail.remote())
        assert ray_compat.reason(failed.value) == ("LookupError: first line", False)
        with pytest.raises(ray.exceptions.RayError) as died:
            ray.get(actor.die.remote())
        reason, gone = ray_compat.reason(died.value)
        assert gone
        assert re.fullmatch(r"ActorDiedError: .+", reason)

    def test_connections_are_shared(self) -> None:
        import ray

        ray_connection.connect(cpus=1)
        ray_connection.disconnect()
        assert ray.is_initialized(), "the tests' own cluster has another user"

    def test_a_folder_is_found_where_the_usual_one_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setenv("TMPDIR", str(tmp_path)[:20])
        (tmp_path / "file").touch()
        for unwritable in ("/proc/nonexistent", str(tmp_path / "file"), "/tmp/" + 60 * "x"):
            monkeypatch.setenv("RAY_TMPDIR", unwritable)
            found = ray_connection.temporary_folder()
            assert found is not None
            (Path(found) / "probe").touch()
            assert len(found) < 40
            (Path(found) / "probe").unlink()
            Path(found).rmdir()

    def test_without_ray_the_message_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(ImportError, match=r"needs Ray: pip install 'robust-agg\[ray\]'"):
            RayHosts([spec()])
