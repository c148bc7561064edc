"""A checkpoint becomes an artifact that needs no torch: merged, exported, quantized, verified,
then written.
"""
