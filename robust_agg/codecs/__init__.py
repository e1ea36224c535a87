"""Codecs: how a row travels as fewer bytes, or as a step that is bounded, or private.

A :class:`Codec` is two pairs of pure functions. A worker's ``encode`` makes a *payload* of its row,
the server's ``decode`` a row of the payload, and after it any aggregator applies. A payload is
data: flat tensors whose names, dtypes and numbers of elements follow from the codec and the rows
(:class:`Layout`), so that a message under a codec is one ``(b,)`` tensor of bytes, which every
transport carries and checks as it does a row, before any memory is allocated for it.

- ``Compressed(compressor=…)``: C(g), no memory on either side.
- ``EF21(compressor=…)``: both sides hold a shift v, C(g - v) is sent, and both add it.
- ``Clip21(tau=…)``: EF21 with clip_τ for C; with ``noise`` it is differentially private.
- ``ErrorFeedback(compressor=…)``: C(g + e) is sent, the worker keeps e = g + e - C(g + e).

C is a :class:`Compressor`: ``TopK``, ``RandomK``, ``Sign``.

Shifts that stay equal. A codec's memory is useful only while both sides have the same, though
messages are lost, late, refused or twice there, hosts die, and runs resume. So a worker moves its
state by what it has sent only once it knows that the message counts: the server says to every
worker it asks which of its messages was the last that counted (``Server.accepted``, by the number
of its round), and every message names the one it builds on. A worker whose last message did not
count goes on from the state before it, as if it had not been asked. One that cannot go on from
what the server says (its host has lost its state, or the server its own) begins anew with a message
that says so, and so does the server. That is all there is to repair: no message is sent twice, and
no state ever travels. See :mod:`~robust_agg.codecs.sender` and :mod:`~robust_agg.codecs.decoder`.

What the server does not believe. The clip of Clip21 is the server's own: a longer step is clipped
again, counts as clipped, and the ledger names its sender. A payload that is none (indices that do
not ascend or do not exist, a state it cannot build on) keeps its sender's place with a row of NaN;
so does one that makes a row non-finite. Neither moves the server's shift.
"""

from robust_agg.codecs.clip21 import Clip21
from robust_agg.codecs.codec import Codec, Decoded
from robust_agg.codecs.compressed import Compressed
from robust_agg.codecs.compressor import Compressor
from robust_agg.codecs.ef21 import EF21
from robust_agg.codecs.error_feedback import ErrorFeedback
from robust_agg.codecs.layout import Field, Layout
from robust_agg.codecs.random_k import RandomK
from robust_agg.codecs.sign import Sign
from robust_agg.codecs.top_k import TopK

__all__ = [
    "EF21",
    "Clip21",
    "Codec",
    "Compressed",
    "Compressor",
    "Decoded",
    "ErrorFeedback",
    "Field",
    "Layout",
    "RandomK",
    "Sign",
    "TopK",
]
