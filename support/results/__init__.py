"""Recorded full runs, the published values and the inventory of the sources, as tidy CSV files."""
