"""The report of a sweep: one page that needs nothing but itself, Markdown, and figures."""
