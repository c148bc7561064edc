"""One engine per file. A backend is opened with a path and offers `run(batch) -> logits`, its shapes and its
metadata map.
"""
