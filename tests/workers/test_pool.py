"""What a pool knows of its hosts when the caller is interrupted, or a call cannot be sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from host_faults import FaultySpec
from host_samples import mlp, parameters, spec

from workers import HostSpec, InlineHosts

WEIGHTS = parameters(mlp)


class Interrupted(dict[int, str]):
    """Who is busy; the caller presses Ctrl-C when the first host is marked."""

    def __setitem__(self, host: int, what: str) -> None:
        if what == "round 0":
            raise KeyboardInterrupt
        super().__setitem__(host, what)


def test_an_interrupted_call_leaves_no_answer_for_the_next_one() -> None:
    with InlineHosts(spec().split(2)) as transport:
        transport._busy = Interrupted()
        with pytest.raises(KeyboardInterrupt):
            transport.collect(0, WEIGHTS)
        assert not transport._busy
        for round in (1, 2):
            updates = transport.collect(round, WEIGHTS).updates
            assert [update.round for update in updates] == [round] * 6


def test_a_host_whose_call_cannot_be_sent_is_free() -> None:
    class Refusing(InlineHosts):
        refuse = True

        def _submit(self, host: int, method: str, *args: Any) -> None:
            if host == 1 and self.refuse:
                raise OSError("no room in the store")
            super()._submit(host, method, *args)

    with Refusing(spec().split(2)) as transport:
        with pytest.raises(OSError, match="no room"):
            transport.collect(0, WEIGHTS)
        transport.refuse = False
        transport.state()  # waits for the host that was called
        assert {update.sender for update in transport.collect(1, WEIGHTS).updates} == set(range(6))


def test_a_round_waits_for_a_late_host_where_the_others_are_too_few(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flag = tmp_path / "now"
    specs: list[HostSpec] = list(spec().split(2))
    specs[1] = FaultySpec.of(specs[1], {0: "late"}, flag=str(flag))
    with InlineHosts(specs, deadline=1.0, quorum=4) as transport:
        assert not transport.collect(0, WEIGHTS).quorum_met
        vain = transport.collect(1, WEIGHTS)
        assert [update.sender for update in vain.updates] == [0, 1, 2]
        assert vain.seconds >= 1.0
        (said,) = caplog.messages
        assert said == "round 1 waits for hosts that are late or built anew: 3 of 4 rows can be had"
        flag.touch()
        transport.deadline = 100.0
        assert len(transport.collect(2, WEIGHTS).updates) == 6
