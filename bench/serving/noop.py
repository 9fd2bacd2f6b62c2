"""A model that does nothing, with the inputs and outputs of `recommend`: what the server itself costs.

It lies in the repository beside the others, which its manifest does not forbid, and is loaded as they are: the same
queue, the same batches, as many processes.
"""

from __future__ import annotations

import dataclasses
import shutil
from typing import Final

from fuserec.contract import RECOMMEND
from fuserec.manifest import CODE_FILE, CONFIG_FILE
from fuserec.serve.launcher import Server

NOOP: Final = "noop"
_CODE: Final = '''\
"""Answers each request with zeros in the shapes that `recommend` would give."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        outputs = json.loads(args["model_config"])["output"]
        self.outputs = [
            (one["name"], pb_utils.triton_string_to_numpy(one["data_type"]), int(one["dims"][0])) for one in outputs
        ]

    def execute(self, requests):
        responses = []
        for request in requests:
            k = pb_utils.get_input_tensor_by_name(request, "k").as_numpy()
            asked = request.requested_output_names()
            tensors = [
                pb_utils.Tensor(name, np.zeros((len(k), width if width > 0 else int(k.max())), dtype))
                for name, dtype, width in self.outputs
                if name in asked
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
'''


def load_noop(server: Server) -> None:
    """Write the model into the repository of a running server and load it."""
    version = str(server.manifest.version)
    source, target = server.repository / RECOMMEND / version, server.repository / NOOP
    shutil.rmtree(target, ignore_errors=True)
    (target / version).mkdir(parents=True)
    (target / version / CODE_FILE).write_text(_CODE)
    config = (source / CONFIG_FILE).read_text().replace(f'name: "{RECOMMEND}"', f'name: "{NOOP}"')
    for folder in (target, target / version):
        (folder / CONFIG_FILE).write_text(config)
    # To the launcher it is a stage, and it is to have what the front door has.
    settings = dataclasses.replace(server.settings, stage_instances=server.settings.instances)
    with server.admin() as admin:
        admin.load(server.manifest, server.repository, [NOOP], settings, timeout_s=60.0)
