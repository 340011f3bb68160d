"""Safetensors: one file, a folder of shards, writing. The names other rooms use, in one place.

::

    safetensors_read.py     one file's header, as hostile as it may be
    safetensors_folder.py   model.safetensors, or an index and its shards
    safetensors_write.py    the header, and whole files of arrays
"""

from kvant.files.safetensors_folder import SafetensorsFolder, read_folder, read_sharded
from kvant.files.safetensors_read import OtherTensor, SafetensorsFile, read_safetensors
from kvant.files.safetensors_write import header_bytes, write_safetensors

__all__ = [
    "OtherTensor",
    "SafetensorsFile",
    "SafetensorsFolder",
    "header_bytes",
    "read_folder",
    "read_safetensors",
    "read_sharded",
    "write_safetensors",
]
