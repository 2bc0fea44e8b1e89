"""Finished HTML pages."""
