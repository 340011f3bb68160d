"""GGUF files: reading, splits, building headers. The names other rooms use, in one place.

::

    gguf_value.py   the types of metadata values, and constructors
    gguf_file.py    GgufFile: metadata with typed access, tensors
    gguf_read.py    one file's header, as hostile as it may be
    gguf_split.py   NAME-00001-of-00003.gguf and its brothers as one
    gguf_write.py   the header of a file to be written
    gguf_layout.py  findings about a file's layout
"""

from kvant.files.gguf_file import GgufFile
from kvant.files.gguf_layout import Finding, check_layout
from kvant.files.gguf_read import DEFAULT_ALIGNMENT, read_gguf
from kvant.files.gguf_split import read_gguf_split, split_name
from kvant.files.gguf_value import (
    Value,
    ValueType,
    array,
    boolean,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    string,
    strings,
    uint8,
    uint16,
    uint32,
    uint64,
)
from kvant.files.gguf_write import TensorSpec, header_bytes, header_length, metadata_bytes, padded

__all__ = [
    "DEFAULT_ALIGNMENT",
    "Finding",
    "GgufFile",
    "TensorSpec",
    "Value",
    "ValueType",
    "array",
    "boolean",
    "check_layout",
    "float32",
    "float64",
    "header_bytes",
    "header_length",
    "int8",
    "int16",
    "int32",
    "int64",
    "metadata_bytes",
    "padded",
    "read_gguf",
    "read_gguf_split",
    "split_name",
    "string",
    "strings",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
]
