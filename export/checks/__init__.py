"""The checks that an artifact passes before it is written, and the images they are made on."""
