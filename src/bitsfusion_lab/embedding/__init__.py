"""Trains the models that the package brings: tokenizer, text encoder, UNet, VAE and scorer of a drawn world."""
