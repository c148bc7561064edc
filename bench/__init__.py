"""Numbers about artifacts, with the conditions they were taken under. Imports `runtime` only; nobody imports
it.
"""
