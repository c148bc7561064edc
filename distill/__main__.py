"""`python -m distill` is the `distill` command."""

import sys

from .cli import main

sys.exit(main())
