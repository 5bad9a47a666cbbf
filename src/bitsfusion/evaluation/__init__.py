"""How good a model is beside its original: noise errors, pictures, scores, and the page that reports them."""
