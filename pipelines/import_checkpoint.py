"""Import a checkpoint of the published implementation: its weights and vocabulary become a model bundle.

Sizes are read off the weights; what weights do not tell is a flag, and defaults to the paper's value.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from hisem import cli
from hisem.errors import BundleError, ConfigError
from hisem.ranges import Fraction, Heads, NumExperts
from hisem.writable import require_writable


@dataclass(frozen=True)
class Options(cli.Common):
    """Import a published checkpoint."""

    file: tyro.conf.Positional[Path]
    """The checkpoint (.pth): a dict of encoder_dict, encoder_trans_dict and decoder_dict."""
    vocab: Path
    """Its vocabulary: JSON of word to id."""
    output: Path
    """Folder for the bundle; must not hold anything yet."""
    heads: Heads = 8
    """Attention heads of BDAM and the decoder."""
    top_k: NumExperts = 2
    """Experts a token is sent to."""
    groups: NumExperts = 4
    """Groups of experts."""
    groups_kept: NumExperts = 2
    """Best groups among which a token chooses."""
    threshold: Fraction = 0.5
    """A pair is changed when p(changed) is at least this, in [0, 1]."""


def main(options: Options) -> int:
    """Import, and say what was inferred and what was left out."""
    if options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir())):
        raise ConfigError(f"--output {options.output}: not an empty folder; name a new one.")
    require_writable(str(options.output))
    # Imported late, so that --help answers at once.
    from hisem.config import flatten, to_dict
    from hisem.model.published import Undetermined, import_checkpoint, read_checkpoint
    from hisem.report.summary import counts_table, print_lines, show
    from hisem.text.vocabulary import Vocabulary

    if not options.file.is_file():
        raise BundleError(f"{options.file}: no such file.")
    try:
        vocabulary = Vocabulary.from_dict(json.loads(options.vocab.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"--vocab {options.vocab}: not readable as JSON ({error}).") from error
    told = {name: value for name, value in asdict(options).items() if name in Undetermined.__dataclass_fields__}
    imported = import_checkpoint(read_checkpoint(options.file), vocabulary, Undetermined(**told))
    digest = imported.model.save_pretrained(options.output)
    inferred = {name: str(value) for name, value in flatten(to_dict(imported.model.config)).items()}
    show(counts_table(f"Model of {options.file.name}", inferred | {"words": str(len(vocabulary))}))
    kinds = Counter(re.sub(r"\.\d+\.", ".*.", key) for key in imported.dropped)
    show(counts_table("Keys that nothing uses, dropped", {key: str(count) for key, count in kinds.items()}))
    print_lines(f"bundle: {options.output}\ndigest: {digest}")
    return cli.Exit.DONE


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Options, __doc__ or ""))
