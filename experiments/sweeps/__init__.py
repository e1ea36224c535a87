"""Sweeps: grids of trainings that are kept as they finish, and the report of what they say."""
