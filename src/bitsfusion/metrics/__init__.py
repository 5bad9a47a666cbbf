"""What images are measured by: error against other images, CLIP score, GenEval; and how images are generated."""
