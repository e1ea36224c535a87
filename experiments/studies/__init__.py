"""Work done piece by piece in a folder, and kept: figures, tables and claims with verdicts."""
