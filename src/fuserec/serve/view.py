"""What one server is shown of a repository: one version of each model, configured for this machine.

The repository may be read-only, holds versions that are not served, and has the defaults of `ServingConfig`. So the
server is given a folder of its own, with a link to each version folder and a `config.pbtxt` beside it:

    VIEW/recommend/config.pbtxt     the published one, its settings replaced, this version alone
    VIEW/recommend/3             -> REPOSITORY/recommend/3
    VIEW/recommend/shown         new each time that the model is shown

A server opens a model anew only if a file in its folder is newer than when it looked last, and a configuration that is
the same does not count. Without the last of them a model whose process has died would stay as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from google.protobuf import text_format

from fuserec.errors import BundleError
from fuserec.files import replacing_file
from fuserec.manifest import BYTECODE_FOLDER, CONFIG_FILE, Manifest
from fuserec.serve.settings import ServingConfig

_SHOWN: Final = "shown"


class View:
    """A model repository of links.

    Args:
        folder: Where it is made; it is the server's alone.
        repository: What it shows.
        settings: How the models run.
    """

    def __init__(self, folder: Path, repository: Path, settings: ServingConfig) -> None:
        self.folder = folder
        self._repository = repository
        self._settings = settings
        folder.mkdir(parents=True)

    def show(self, manifest: Manifest, models: Sequence[str]) -> None:
        """Show the version of a verified bundle for some of its models; the server sees it when it is told to load.

        Raises:
            BundleError: Bytecode lies beside a model's code and cannot be removed.
        """
        from tritonclient.grpc import model_config_pb2

        for model in models:
            _remove_bytecode(self._repository / model / str(manifest.version))
            # The version's own copy: the one above the versions may be a newer one's.
            published = self._repository / manifest.path_of(f"{model}/{CONFIG_FILE}")
            config = text_format.Parse(published.read_text(), model_config_pb2.ModelConfig())
            self._settings.apply(config, model, manifest.models)
            config.version_policy.specific.versions[:] = [manifest.version]
            target = self.folder / model
            target.mkdir(exist_ok=True)
            link = target / str(manifest.version)
            # Other versions go: one of them may be removed from the repository, and the server stumbles over a link
            # that leads nowhere. What is loaded from it is not touched by that.
            for other in target.iterdir():
                if other.is_symlink() and other != link:
                    other.unlink()
            if not link.is_symlink():
                link.symlink_to(self._repository / model / str(manifest.version), target_is_directory=True)
            with replacing_file(target / CONFIG_FILE) as temporary:
                temporary.write_text(text_format.MessageToString(config))
            with replacing_file(target / _SHOWN) as temporary:
                temporary.touch()

    def hide(self, model: str) -> None:
        """Show a model no longer."""
        shutil.rmtree(self.folder / model)


def _remove_bytecode(version: Path) -> None:
    """Remove what Python may have cached of a model's code.

    Python runs it in the place of the file beside it, and the manifest does not vouch for it.
    """
    folder = version / BYTECODE_FOLDER
    if folder.is_symlink():
        raise BundleError(f"{folder} is a link, and Python would run what lies there; remove it")
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise BundleError(
            f"{folder} cannot be removed, and Python would run it in the place of the models' own files; remove it "
            "where the repository can be written to"
        )
