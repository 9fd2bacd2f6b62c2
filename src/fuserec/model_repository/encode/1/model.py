"""The user tower alone; the work is in fuserec.serve."""

from fuserec.serve.triton_models import EncodeModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
