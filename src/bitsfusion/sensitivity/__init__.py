"""How much a model loses when one layer alone gets few bits (section 3.2)."""
