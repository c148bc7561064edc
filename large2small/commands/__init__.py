"""Commands that need all the floors below, one file each."""
