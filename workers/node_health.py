"""Whether the Ray node of this machine is alive as its cluster sees it: for containers' checks.

``python -m workers.node_health`` ends with 0 if so, or where there is no node, unless it is
``--required``; and otherwise with 1 and a line. A process that runs is not yet a node that is given
work: one that the head no longer hears, or that the cluster has given up, is not alive.
"""

from __future__ import annotations

import sys

from workers import ray_compat


def main() -> None:
    """Say how the node is."""
    problem = ray_compat.node_problem(required="--required" in sys.argv[1:])
    if problem is not None:
        sys.exit(f"node_health: {problem}")


if __name__ == "__main__":
    main()
