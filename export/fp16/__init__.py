"""fp16 in the graph: which nodes stay fp32, and the change of types."""
