"""The flow model at about two bits: mixed bits, uniform ternary with an FP16 tail at equal bytes, other quantizers."""
