"""The single-stream transformer."""
