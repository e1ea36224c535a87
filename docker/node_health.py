"""Whether the Ray node of this container is alive as its cluster sees it: ``node_health.py``.

Ends with 0 if so, or where there is no node, unless it is ``--required``; and otherwise with 1 and
a line. A process that runs is not yet a node that is given work: one that the head no longer hears,
or that the cluster has given up, is not alive.

It needs Ray and nothing else, for it is asked often, and to import more would take seconds. It
finds a node by what ``ray start`` has left in ``/tmp/ray``, or in ``RAY_TMPDIR`` where both have
that, and asks its head with the token of its own environment.
"""

from __future__ import annotations

import socket
import sys

from ray._private.services import find_bootstrap_address
from ray._raylet import GcsClient

ALIVE = 0  # the state of a node in Ray's gcs.proto
HEARD = 10.0  # seconds for the head to answer, twice


def problem(*, required: bool = False) -> str | None:
    """What is wrong with the node that ``ray start`` has begun on this machine; None if nothing.

    Args:
        required: whether it is wrong that there is none.
    """
    head = find_bootstrap_address(None)
    if head is None:
        return "no node has been started here" if required else None
    host, _, port = head.rpartition(":")
    try:
        # Ray itself would try for a minute.
        socket.create_connection((host.strip("[]"), int(port)), HEARD).close()
        nodes = GcsClient(address=head).get_all_node_info(timeout=HEARD).values()
    except Exception as error:  # of Ray's own kinds, which differ between versions
        why = str(error).strip().splitlines() or [type(error).__name__]
        return f"the head at {head} does not answer: {why[0]}"
    alive = [node.node_manager_address for node in nodes if node.state == ALIVE]
    if not any(map(is_own, alive)):
        return f"the cluster at {head} has nodes {alive}, and none of them is here"
    return None


def is_own(address: str) -> bool:
    """Whether an address, IPv4 or IPv6, is one of this machine's: others cannot be bound to."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as here:
        try:
            here.bind((address, 0))
        except OSError:
            return False
    return True


if __name__ == "__main__":
    found = problem(required="--required" in sys.argv[1:])
    if found is not None:
        sys.exit(f"node_health: {found}")
