"""GGUF files: what llama.cpp, Ollama and everything built on them load.

::

    plan.py      what will be written: tensors, packings, exact sizes; nothing is read yet
    keys.py      what the header says: the model, how it was made, checksums
    stream.py    tensors from source to output in bounded memory, by several threads
    write.py     a plan becomes files, whole or not at all
    verify.py    a file against its own checksums, and against its source
"""
