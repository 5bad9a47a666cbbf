"""Custom node of ComfyUI: a packed folder's denoiser as a MODEL.

Put this folder (or a link to it) into ComfyUI's `custom_nodes`, install bitsfusion into ComfyUI's Python, and packed
folders into `models/diffusers`.
"""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
