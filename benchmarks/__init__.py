"""How long each stage takes beside the least that its own matmuls and attention take."""
