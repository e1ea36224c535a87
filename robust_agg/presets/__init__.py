"""The rules of other libraries, by their names and parameters, as rules of this one.

``presets.byzfl.Krum(f=2)`` is a ``robust_agg.Krum`` that gives ByzFL's numbers; what it is called
with, and by default, is what ByzFL calls it. One peer a file, whose table says which rule each name
is, what is left out because no rule here is exactly that, and how it was verified.

What is the same is the result, of float64 rows to rounding, where no two rows or scores are equal.
All else is this library's: rows are ``(n, d)``, ties go to the lowest index, a random mixing asks
for a generator, a row that is not finite is rejected, and n too small for f raises
``ConstraintError`` where the peer may go on. A pre-aggregator is a mixing, for ``chain``.
"""

from robust_agg.presets import byzfl, byzpy, epfml, flower

__all__ = ["byzfl", "byzpy", "epfml", "flower"]
