"""The numbers of a training step: kept on the device until someone looks, and what says which part is bad."""
