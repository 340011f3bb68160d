"""Tokenizers and chat templates: from Hugging Face to GGUF and back, with the same ids.

::

    definition.py       what a tokenizer is, apart from any format
    hf.py               Hugging Face folder -> definition   (hf_files, hf_vocab, hf_ends,
                        hf_templates; sentencepiece.py reads tokenizer.model)
    hf_write.py         definition -> tokenizer.json
    gguf_meta.py        definition <-> GGUF metadata
    build.py            definition -> a Tokenizer that runs
    pretokenizers.py    llama.cpp's names for ways to cut words (regexes.py)
    spm.py              scores as merges and merges as scores
    chat.py             rendering chat templates in a confined process (chat_worker.py)

The ``tokenizers`` library and Jinja are imported when something runs, not before.
"""

from kvant.tokenizer.build import Tokenizer, build
from kvant.tokenizer.chat import ChatRenderer, Limits, render
from kvant.tokenizer.definition import TokenizerDefinition, TokenType
from kvant.tokenizer.gguf_meta import from_metadata, to_metadata
from kvant.tokenizer.hf import from_folder
from kvant.tokenizer.hf_files import has_tokenizer
from kvant.tokenizer.hf_write import to_hf_config, to_hf_json
from kvant.tokenizer.pretokenizers import known_names

__all__ = [
    "ChatRenderer",
    "Limits",
    "TokenType",
    "Tokenizer",
    "TokenizerDefinition",
    "build",
    "from_folder",
    "from_metadata",
    "has_tokenizer",
    "known_names",
    "render",
    "to_hf_config",
    "to_hf_json",
    "to_metadata",
]
