"""Human preference: two models' images of one prompt side by side, blind, and what the votes come to (section 5)."""
