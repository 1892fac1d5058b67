"""Figures: pure functions from data to `plotly.graph_objects.Figure` (or, for the sparkline, to an SVG path)."""
