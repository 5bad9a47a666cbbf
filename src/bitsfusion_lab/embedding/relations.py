"""The relations of captions, as the questions about them need them."""

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
