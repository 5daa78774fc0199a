"""Writing weights anew, as one safetensors file of smaller numbers."""
