"""Where a pipeline's model card lies in its folder: no part of the model, whatever hashes or checks the folder."""

README = "README.md"
PICTURES = "card"
CARD = (README, PICTURES)
