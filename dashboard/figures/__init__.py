"""Figures: pure functions from data to `plotly.graph_objects.Figure`, or to an SVG path for the sparkline."""
