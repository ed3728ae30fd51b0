"""Enlarge photos and videos with a trained network."""
