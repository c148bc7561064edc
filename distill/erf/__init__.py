"""Effective receptive fields: how far a network looks, in numbers and in heat maps."""
