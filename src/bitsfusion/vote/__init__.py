"""Human preference: a blind vote on two models' images of the same prompts, and its results (section 5)."""
