"""Pictures and sounds from files, and mp4 files from pictures and sounds."""
