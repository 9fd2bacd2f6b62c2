"""Candidates in the ranker's order; the work is in fuserec.serve."""

from fuserec.serve.triton_models import RankModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
