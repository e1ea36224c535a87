"""Small vertex covers: which few rows to leave out so that no two of the rest are in conflict.

A graph is a list of bit masks, one a vertex: bit j of mask i says that i and j are joined. Exact,
in time exponential in the size of the cover alone, of base 1.47 at worst and far less as a rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from robust_agg.budget import Budget


class CoverSearch:
    """Answers whether covers exist, counting the nodes of all its searches.

    Args:
        budget: spent on all of them; a step is a look at one vertex.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget, self.nodes = budget, 0

    def exists(self, graph: Sequence[int], alive: int, size: int) -> bool:
        """Whether ``size`` vertices at most touch every edge among the ``alive`` ones."""
        # Not by recursion, for covers may have more vertices than Python has levels.
        pending = [(alive, size)]
        while pending:
            found, branches = self._node(graph, *pending.pop())
            if found:
                return True
            pending += branches
        return False

    def _node(
        self, graph: Sequence[int], alive: int, size: int
    ) -> tuple[bool, list[tuple[int, int]]]:
        """Whether there is a cover, and if that is not seen, with which vertices left to ask on."""
        self.nodes += 1
        while True:
            self.budget.spend(1 + alive.bit_count())
            edges, most, pick, alone = 0, 0, -1, -1
            for vertex in _bits(alive):
                degree = (graph[vertex] & alive).bit_count()
                if degree == 0:
                    alive &= ~(1 << vertex)  # nothing to cover: it decides nothing
                    continue
                edges += degree
                if degree == 1:
                    alone = vertex
                if degree > most:
                    most, pick = degree, vertex
            if edges == 0:
                return size >= 0, []
            # Every vertex of a cover touches at most `most` edges, each counted twice here.
            if size <= 0 or edges > 2 * size * most:
                return False, []
            if most > size:
                chosen = pick  # else all its neighbours are in the cover, which are too many
            elif alone >= 0:
                # The other end of its edge covers that edge and more.
                chosen = (graph[alone] & alive).bit_length() - 1
            else:
                break
            alive &= ~(1 << chosen)
            size -= 1
        if most == 2:
            # Nothing is left but cycles, of which one of k vertices needs half of them.
            self.budget.spend(alive.bit_count())
            needed = sum((length + 1) // 2 for length in _components(graph, alive))
            return needed <= size, []
        neighbours = graph[pick] & alive
        alive &= ~(1 << pick)
        # The last one first: the vertex with most edges is in most covers.
        return False, [(alive & ~neighbours, size - most), (alive, size - 1)]


def first_independent_set(search: CoverSearch, graph: Sequence[int], size: int) -> list[int]:
    """The lexicographically lowest ``size`` vertices of which no two are joined, if there are any.

    Args:
        search: counts the nodes.
        graph: n masks, n >= ``size``, of which some independent set of that size exists.
        size: how many vertices.
    """
    alive, spare = (1 << len(graph)) - 1, len(graph) - size
    kept: list[int] = []
    for vertex in range(len(graph)):
        if len(kept) == size:
            break
        if not alive >> vertex & 1:
            continue  # joined to one that is kept
        alive &= ~(1 << vertex)
        joined = graph[vertex] & alive
        left = spare - joined.bit_count()
        # What is joined to none can be kept whatever else is.
        if joined == 0 or (left >= 0 and search.exists(graph, alive & ~joined, left)):
            kept.append(vertex)
            alive, spare = alive & ~joined, left
        else:
            spare -= 1
    return kept


def _components(graph: Sequence[int], alive: int) -> Iterator[int]:
    """How many vertices each connected part of the ``alive`` ones has."""
    while alive:
        part = reached = alive & -alive
        while reached:
            around = 0
            for vertex in _bits(reached):
                around |= graph[vertex]
            reached = around & alive & ~part
            part |= reached
        yield part.bit_count()
        alive &= ~part


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
