"""Flower's robust strategies (``flwr.serverapp.strategy``): how they fuse what clients send.

===============================  =================================================================
Flower                           here
===============================  =================================================================
FedMedian()                      CoordinateWiseMedian()
FedTrimmedAvg(beta)              BetaTrimmedMean(beta)
Krum(num_malicious_nodes)        Krum(f=num_malicious_nodes)
MultiKrum(num_malicious_nodes,   MultiKrum(f=num_malicious_nodes, m=num_nodes_to_select)
num_nodes_to_select)
Bulyan(num_malicious_nodes)      Bulyan(f=num_malicious_nodes, rounds="at once")
===============================  =================================================================

Rows are what clients send, all arrays of a model in one. ``MultiKrum`` is Flower's where clients
report as many examples as each other: it weighs the rows it has selected by that number, which this
library does not believe. ``FedTrimmedAvg`` cuts ``int(beta·n)`` values at either end, which may be
one less than ⌊βn⌋ by rounding, as for β = 0.29 and n = 100; for β = 0.2, the default, it is not up
to n = 100,000. Flower's ``Krum`` asks for no n; here n >= 2f + 3.

The older ``flwr.server.strategy`` has the same rules by the same numbers, but for its ``Bulyan``,
which selects one by one: ``robust_agg.Bulyan(f)``; its parameters are called
``num_malicious_clients`` and ``num_clients_to_keep``.

Flower's source of 2025 was read, not run; the tests hold each name to a naive form of what it does.
"""

from __future__ import annotations

import robust_agg as ra


def FedMedian() -> ra.CoordinateWiseMedian:
    return ra.CoordinateWiseMedian()


def FedTrimmedAvg(beta: float = 0.2) -> ra.BetaTrimmedMean:
    return ra.BetaTrimmedMean(beta=beta)


def Krum(num_malicious_nodes: int = 0) -> ra.Krum:
    return ra.Krum(f=num_malicious_nodes)


def MultiKrum(num_malicious_nodes: int = 0, num_nodes_to_select: int = 1) -> ra.MultiKrum:
    return ra.MultiKrum(f=num_malicious_nodes, m=num_nodes_to_select)


def Bulyan(num_malicious_nodes: int = 0) -> ra.Bulyan:
    return ra.Bulyan(f=num_malicious_nodes, rounds="at once")
