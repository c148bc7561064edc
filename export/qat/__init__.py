"""Training as int8: the exported graph as a torch module, and the quantizer of what was learned."""
