"""What the messages of a codec with noise tell of a worker's data: (ε, δ) after so many of them.

A message is ``c + σζ`` with ‖c‖₂ <= τ, whatever the worker's data are: for two data sets the c
differ by at most 2τ. Which c it is may depend on all that was sent before. So T messages are an
adaptive composition of T Gaussian mechanisms of sensitivity 2τ, and that is exactly as private as
one of

    μ = 2τ√T/σ = 2√T/noise,    δ(ε) = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ)

(Balle and Wang, "Improving the Gaussian mechanism for differential privacy", 2018, Theorem 8; Dong,
Roth and Su, "Gaussian differential privacy", 2022). There is nothing to be estimated: accountants,
such as those of Opacus, give upper bounds of this very number.

What is private is all of one worker's data (one data set is replaced by any other) towards all who
see its messages, the server among them: local differential privacy. Messages that were lost or did
not count have been sent. That batches are drawn at random is not made use of: of a worker's
momentum every message depends on all batches so far. Noise of floating point numbers is no exact
Gaussian (Mironov, 2012), which this does not account for.

The noise is drawn from seed, worker and round: who knows the seed knows it. A round that is done
again after a restart, or a second training with the same seed, draws the same; the number is that
of one training that was not resumed. A salt that only the operating system knows would not mend
this. Kept in the checkpoint, a round that is done again repeats the noise all the same; drawn anew,
its message is one more, which no count has, for counts go back with the checkpoint. Either way one
seed would no longer be one result, which resumption, transports and comparisons of defences are
held to. Simulations may repeat themselves. Where data are to be protected, every host needs a seed
that nobody else has (``HostSpec.seed``), and another one whenever it is started.
"""

from __future__ import annotations

from math import exp, inf, log, sqrt

import torch

from robust_agg.codecs.codec import Codec
from robust_agg.errors import check_count, check_share


def epsilon(codec: Codec, messages: int, *, delta: float) -> float:
    """The smallest ε, to rounding, for which ``messages`` messages of a worker are (ε, δ)-private.

    Infinite of a codec without noise.

    Raises:
        ValueError: messages < 0, or δ not in (0, 1).
    """
    check_count("epsilon", "messages", messages, minimum=0)
    check_share("epsilon", "delta", delta)
    if messages == 0:
        return 0.0
    if codec.noise == 0:
        return inf
    mu = 2 * sqrt(messages) / codec.noise
    if _delta(0.0, mu) <= delta:
        return 0.0
    # δ falls as ε grows; the end is where it is reached by zero-concentrated privacy (Bun and
    # Steinke, 2016, Proposition 1.3), which is an upper bound.
    below, above = 0.0, mu**2 / 2 + mu * sqrt(2 * log(1 / delta))
    while (middle := (below + above) / 2) not in (below, above):
        if _delta(middle, mu) > delta:
            below = middle
        else:
            above = middle
    return above


def _delta(epsilon: float, mu: float) -> float:
    """δ(ε): of logarithms, for e^ε need not be a number."""
    ends = torch.tensor([mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu], dtype=torch.float64)
    first, second = torch.special.log_ndtr(ends).tolist()
    return exp(first) - exp(epsilon + second)
