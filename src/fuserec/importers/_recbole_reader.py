"""A process of its own that opens RecBole's pickle and writes its tensors: `python -m ... FILE OUT.safetensors`.

This is the one place of fuserec that unpickles. A pickle is a program: it names functions of any module and has them
called. Here a name stands for what it says if tensors are made of it; any other is an empty class that takes whatever
it is called with, so that RecBole need not be installed and a file that asks for `os.system` gets nothing of the kind.
The process has a limited memory, and what started it trusts no byte of what it writes.
"""

from __future__ import annotations

import collections
import json
import pickle  # noqa: TID251  (RecBole writes nothing else; see above)
import resource
import sys
import types
import zipfile
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor

MEMORY_BYTES: Final = 8 * 2**30
SETTINGS: Final = "settings"
# Settings that are passed on, where they are there: what RecBole's own models are built from.
WANTED: Final = (
    "model", "n_layers", "n_heads", "num_layers", "hidden_act", "layer_norm_eps", "MAX_ITEM_LIST_LENGTH",
)  # fmt: skip
# What tensors are made of; storages are made by torch.load itself, which asks nobody for them.
REAL: Final = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
}


class StandIn:
    """An object of a class that is not to be loaded; it keeps its attributes if it was given any."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Ignore what the real one would take."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def append(self, value: object) -> None:
        """Ignore an element, as do the next two."""

    def extend(self, values: object) -> None:
        """As above."""

    def __setitem__(self, key: object, value: object) -> None:
        """As above."""


class Unpickler(pickle.Unpickler):
    """Finds nothing but `REAL`."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the real thing or a stand-in."""
        return REAL.get((module, name)) or type(name, (StandIn,), {})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of the model and its settings.

    Raises:
        ValueError: if the file is not RecBole's.
    """
    _check_archive(path)
    # torch.load takes the unpickler from something that looks like the module `pickle`. weights_only=True would not
    # do: it refuses protocol 4, which RecBole writes.
    library = types.SimpleNamespace(__name__="stand_ins", Unpickler=Unpickler)
    saved = torch.load(path, map_location="cpu", weights_only=False, pickle_module=library)
    if not isinstance(saved, dict) or not {"config", "state_dict"} <= saved.keys():
        raise ValueError("it holds no config and state_dict; expected what RecBole's trainer saves")
    settings = getattr(saved["config"], "final_config_dict", None)
    if not isinstance(settings, dict):
        raise ValueError("its config has no final_config_dict; expected what RecBole 1.x saves")
    tensors = {
        str(name): tensor.contiguous() for name, tensor in saved["state_dict"].items() if isinstance(tensor, Tensor)
    }
    plain = {name: settings[name] for name in WANTED if isinstance(settings.get(name), str | int | float)}
    return tensors, plain


def _check_archive(path: Path) -> None:
    """Refuse what torch.load would open by other means, and what would grow while it is read."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"{member.filename} is compressed; expected none to be, as torch.save writes them")
            if Path(member.filename).name == "constants.pkl":
                raise ValueError("it is a TorchScript program; expected what RecBole's trainer saves")


def main(path: Path, out: Path) -> None:
    """Read `path` and write `out`; on failure one line on stderr and status 1."""
    limit = MEMORY_BYTES + 4 * path.stat().st_size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        tensors, settings = read(path)
        safetensors.torch.save_file(tensors, out, metadata={SETTINGS: json.dumps(settings)})
    except Exception as error:  # whatever a file of anybody's making provokes
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        sys.exit(f"{type(error).__name__}: {lines[0] if lines else 'no reason was given'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
