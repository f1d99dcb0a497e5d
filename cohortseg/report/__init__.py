"""Trajectories of patients as tables, pictures and one self-contained page."""
