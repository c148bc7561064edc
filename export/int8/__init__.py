"""Calibrated int8: statistics, ranges, placement, Q/DQ nodes, weights, and the accuracy budget."""
