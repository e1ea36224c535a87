"""``robust-agg bench``: what things cost here, beside everyone else's and beside the limit."""
