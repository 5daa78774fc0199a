"""Programs for users of a running ComfyUI; they need nothing but Python."""
