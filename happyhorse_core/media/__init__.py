"""Images and sound from files, and mp4 files from frames and sound."""
