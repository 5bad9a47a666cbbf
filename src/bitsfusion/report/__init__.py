"""What is published of a model: the page of a run that needs nothing beside it, and the card of a packed folder."""
