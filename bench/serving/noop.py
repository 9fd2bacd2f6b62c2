"""A model that does nothing, with the inputs and outputs of `recommend`: what the server itself costs.

It is shown to the server beside the others, with the configuration of `recommend`: the same queue, the same batches, as
many processes.
"""

from __future__ import annotations

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
    """Put the model beside the others of a running server and load it."""
    target, version = server.shown / NOOP, str(server.manifest.version)
    (target / version).mkdir(parents=True)
    (target / version / CODE_FILE).write_text(_CODE)
    config = (server.shown / RECOMMEND / CONFIG_FILE).read_text()
    (target / CONFIG_FILE).write_text(config.replace(f'name: "{RECOMMEND}"', f'name: "{NOOP}"'))
    with server.admin() as admin:
        admin.load([NOOP], timeout_s=60.0)
