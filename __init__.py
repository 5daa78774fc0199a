"""Video with synchronised sound in ComfyUI. What the host looks for in a pack; the nodes are in ``nodes``."""

# Test runners and linters may import this file alone, outside the package that ComfyUI makes of the folder.
if __package__:
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
