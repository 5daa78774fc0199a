"""Telling what a file or folder of weights is, by its content."""
