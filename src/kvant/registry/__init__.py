"""Models by name: what they are called, where they lie, where they come from.

::

    name.py         names and references: llama3.2:1b, hf://org/repo:Q4_K_M, oci://host/repo:tag
    store.py        Store: list, show, resolve, copy, remove, verify, collect
    layout.py       the files: an OCI image layout, locks, views; why nothing is ever half there
                    (listed.py a line of its index, links.py second names, checking.py verify)
    index.py        what follows from it, in SQLite
    manifest.py     what a model consists of; checked, since it comes from others
    local.py        a model of the store, as those who run it need it
    describe.py     what a model's files say of themselves, as details.py keeps it
    modelfile.py    Modelfiles; parameters.py their parameters
    go_template.py  Go's templates, of which go_syntax.py makes a tree
    making.py       create
    pull.py         pull and push: the only ones that reach out
    oci.py          the distribution protocol; http.py and auth.py below it
    hub.py          Hugging Face
    fetch.py        a blob comes in: resumed, checked

Importing this room, and everything but `pull` and `push`, makes no connection.
"""

from kvant.registry.checking import Verified
from kvant.registry.errors import (
    AbsentError,
    BadNameError,
    DeniedError,
    HostileError,
    NotInStoreError,
    RegistryError,
    UnreachableError,
)
from kvant.registry.local import Entry, Local, Shown
from kvant.registry.modelfile import Message, Modelfile, ModelfileError, parse_modelfile
from kvant.registry.name import Name, Reference, parse_name, parse_reference
from kvant.registry.progress import Progress, Step
from kvant.registry.store import Store, Swept, kvant_home

__all__ = [
    "AbsentError",
    "BadNameError",
    "DeniedError",
    "Entry",
    "HostileError",
    "Local",
    "Message",
    "Modelfile",
    "ModelfileError",
    "Name",
    "NotInStoreError",
    "Progress",
    "Reference",
    "RegistryError",
    "Shown",
    "Step",
    "Store",
    "Swept",
    "UnreachableError",
    "Verified",
    "kvant_home",
    "parse_modelfile",
    "parse_name",
    "parse_reference",
]
