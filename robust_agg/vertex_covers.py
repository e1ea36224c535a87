"""Small vertex covers: which few rows to leave out so that no two of the rest are in conflict.

A graph is a list of bit masks, one a vertex: bit j of mask i says that i and j are joined. Exact,
in time exponential in the size of the cover alone, of base 1.47 at worst and far less as a rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from robust_agg.errors import SearchLimitError


class CoverSearch:
    """Answers whether covers exist, counting the nodes of all its searches.

    Args:
        who: whose search it is, to begin an error message with.
        limit: nodes in all after which :class:`~robust_agg.errors.SearchLimitError` is raised.
    """

    def __init__(self, who: str, *, limit: int) -> None:
        self.who, self.limit, self.nodes = who, limit, 0

    def exists(self, graph: Sequence[int], alive: int, size: int) -> bool:
        """Whether ``size`` vertices at most touch every edge among the ``alive`` ones."""
        self.nodes += 1
        if self.nodes > self.limit:
            raise SearchLimitError(
                f"{self.who}: at most {self.limit} search nodes are allowed, found more"
            )
        while True:
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
                return size >= 0
            # Every vertex of a cover touches at most `most` edges, each counted twice here.
            if size <= 0 or edges > 2 * size * most:
                return False
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
            return sum((length + 1) // 2 for length in _components(graph, alive)) <= size
        neighbours = graph[pick] & alive
        return self.exists(graph, alive & ~(1 << pick), size - 1) or self.exists(
            graph, alive & ~neighbours & ~(1 << pick), size - most
        )


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
        if left >= 0 and search.exists(graph, alive & ~joined, left):
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
