"""What moved a recommendation; the work is in fuserec.serve."""

from fuserec.serve.triton_models import ExplainModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
