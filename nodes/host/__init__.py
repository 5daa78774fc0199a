"""What joins the core to ComfyUI: the only modules that know both. Nodes import from here, the core never does."""
