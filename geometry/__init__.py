"""Cameras and paths: tensors, no files."""
