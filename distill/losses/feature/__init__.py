"""Losses of feature maps: one file per loss, each a module with its own learnable parts."""
