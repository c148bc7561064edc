"""large2small: a large-kernel teacher trains a small-kernel student."""
