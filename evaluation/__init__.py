"""Rendering, scoring and showing."""
