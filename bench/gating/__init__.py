"""Is an artifact as fast, as small and as right as it has to be, and as what it was before?"""

from .measured import Gated, measure
from .options import Options

__all__ = ["Gated", "Options", "measure"]
