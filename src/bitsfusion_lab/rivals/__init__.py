"""Other ways to make a UNet small, each as its paper has it: what ours is compared with on the same data and steps."""
