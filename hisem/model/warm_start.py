"""Training that starts from a trained model: its weights, and rows for words that it did not know."""

from __future__ import annotations

import torch

from hisem.config import flatten, to_dict
from hisem.errors import ConfigError
from hisem.model.hasd import ROUTING
from hisem.model.hisem import HiSem, HiSemConfig
from hisem.text.vocabulary import Vocabulary

CHANGEABLE = ROUTING | {"dropout", "max_length", "trainable_blocks", "weights"}
"""Keys of the config, whatever the component, that may differ from the trained model's. Shapes alone do not tell
them: attention with other heads or another difference_weight takes the same tensors and computes something else."""

WORD_ROWS = ("decoder.embedding.weight", "decoder.output.weight", "decoder.output.bias")
"""The tensors that have one row a word."""


def start_from(trained: HiSem, config: HiSemConfig, vocabulary: Vocabulary) -> HiSem:
    """A model of `config` and `vocabulary` with the weights of `trained`, on the CPU both; `trained` is left as it is.

    Every word of `trained` keeps its rows of embedding and output, wherever `vocabulary` has it. Rows of new words
    are initialised as the decoder does (architecture page, section 4): seed torch before. The backbone's weights come
    from `trained`, not from where `config` says.

    Raises `ConfigError` where `config` differs in what the weights were made for, naming each such key, and
    `ValueError` for a vocabulary that lacks words of `trained`: make it with `trained.vocabulary.extended`.
    """
    require_fit(trained.config, config)
    place = vocabulary.to_dict()
    if lost := [word for word in trained.vocabulary.words if word not in place]:
        raise ValueError(f"the vocabulary lacks {len(lost)} word(s) of the trained model, {lost[0]!a} first")
    model = HiSem(config, vocabulary, pretrained=False)
    rows = torch.tensor([place[word] for word in trained.vocabulary.words])
    weights, fresh = trained.state_dict(), model.state_dict()
    model.load_state_dict(weights | {name: fresh[name].index_copy(0, rows, weights[name]) for name in WORD_ROWS})
    return model


def require_fit(trained: HiSemConfig, config: HiSemConfig) -> None:
    """Raise `ConfigError` naming the keys, with both values, in which weights of `trained` do not fit `config`."""
    there, asked = flatten(to_dict(trained)), flatten(to_dict(config))
    differ = [
        f"model.{key} is {there.get(key, 'not set')} in the trained model, {asked.get(key, 'not set')} asked for"
        for key in sorted(there | asked)
        if there.get(key) != asked.get(key) and key.rpartition(".")[2] not in CHANGEABLE
    ]
    if differ:
        raise ConfigError(
            f"the weights to start from were made for another model: {'; '.join(differ)}. Leave these settings out, "
            "so that the trained model's hold, or train without --init."
        )
