"""The packed diffusers folder: its schema, writer and reader, and the plug-in that lets diffusers load it."""
