"""The model card of a packed folder: README.md, as the Hugging Face hub shows it, and its pictures."""

README = "README.md"
PICTURES = "card"
