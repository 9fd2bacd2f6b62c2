"""The front door; the work is in fuserec.serve."""

from fuserec.serve.triton_models import RecommendModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
