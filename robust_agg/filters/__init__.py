"""Rules that look at whole rows otherwise than by their distances, one a file.

They leave out or shorten rows for their direction, their signs or what sticks out among drawn
coordinates; :mod:`~robust_agg.filters.clusters` has the clusterings some of them need.
"""
