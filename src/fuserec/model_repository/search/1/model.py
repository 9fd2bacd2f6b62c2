"""The item search alone; the work is in fuserec.serve."""

from fuserec.serve.triton_models import SearchModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
