"""Exact top-K search over item embeddings: lookup, scoring, filters and selection in one pass.

>>> index = ItemIndex.build(embeddings, item_ids)
>>> index.search(Lookup(user_table, user_ids), k=10, exclude=seen).ids

Importing this package imports numpy and nothing heavier; numba, torch and triton come with the first search that
needs them.
"""

from fuserec.kernels._mapped import FileState
from fuserec.kernels.filters import ExcludedRows
from fuserec.kernels.index import ItemIndex, TopK
from fuserec.kernels.known import KnownQueries
from fuserec.kernels.query import Bag, Lookup

__all__ = ["Bag", "ExcludedRows", "FileState", "ItemIndex", "KnownQueries", "Lookup", "TopK"]
