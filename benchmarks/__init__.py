"""How long each stage takes beside the least that its own matrix products and attention take."""
