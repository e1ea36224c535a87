"""Sweeps: grids of trainings, carried out side by side, resumable, and honestly selected from."""
