"""A synthetic archive: georeferenced scene pairs rendered from a seed, with references and the truth."""

from hisem.archive.synthetic.archive import Summary, generate, is_synthetic_catalogue
from hisem.archive.synthetic.config import SyntheticConfig
from hisem.archive.synthetic.language import named_kinds
from hisem.archive.synthetic.truth import Kind

__all__ = ["Kind", "Summary", "SyntheticConfig", "generate", "is_synthetic_catalogue", "named_kinds"]
