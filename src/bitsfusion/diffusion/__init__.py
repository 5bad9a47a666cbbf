"""The diffusion process around a denoiser: samplers and time features."""
