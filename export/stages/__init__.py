"""The stages of an export, in their order: inputs, fp32, lower precision, the file."""
