"""Names, types and limits that the server and its clients share; imports nothing heavy.

Every tensor has a leading batch axis. Ids are the caller's own int64 ids; `NO_ID` stands for "none": it pads
histories and exclusion lists of unequal length, marks the absence of a user, and fills the tail of an answer
with fewer than `k` items left.
"""

from __future__ import annotations

from typing import Final

NO_ID: Final = -1

# Models in the repository.
RECOMMEND: Final = "recommend"
ENCODE: Final = "encode"
SEARCH: Final = "search"

# Inputs.
USER_ID: Final = "user_id"  # INT64 (B, 1): NO_ID for a caller known only by their history
HISTORY: Final = "history"  # INT64 (B, L): item ids, oldest first; NO_ID entries are skipped
EXCLUDE: Final = "exclude"  # INT64 (B, E): item ids that must not be recommended; NO_ID entries are skipped
K: Final = "k"  # INT32 (B, 1)
QUERY: Final = "query"  # FP32 (B, D)

# Outputs.
ITEM_IDS: Final = "item_ids"  # INT64 (B, max k): best first, then NO_ID
SCORES: Final = "scores"  # FP32 (B, max k): then -inf
FALLBACK: Final = "fallback"  # BOOL (B, 1): nothing was known of the user, these are the most popular items
IGNORED: Final = "ignored"  # INT32 (B, 1): ids in history and exclude that the catalogue does not hold
USER_VECTOR: Final = "user_vector"  # FP32 (B, D)

# Limits, checked by the client before a call and by the server on receipt.
MAX_BATCH: Final = 64
MAX_K: Final = 10_000
MAX_HISTORY: Final = 10_000
MAX_EXCLUDE: Final = 100_000
