"""Names, types and limits that the server and its clients share; imports nothing heavy.

Every tensor has a leading batch axis. Ids are the caller's own int64 ids; `NO_ID` stands for "none": it pads
histories and exclusion lists of unequal length, marks the absence of a user, and fills the tail of an answer
with fewer than `k` items left. `NO_SCORE` stands where there is no number: beside those ids, and for ratings that a
ranker does not know. Every number of an answer is finite, for answers travel as JSON, too, which knows no other.
"""

from __future__ import annotations

from typing import Final

NO_ID: Final = -1
NO_SCORE: Final = -3.4028234663852886e38  # the lowest finite float32: whoever sorts by score finds it last

# Models in the repository.
RECOMMEND: Final = "recommend"
ENCODE: Final = "encode"
SEARCH: Final = "search"
RANK: Final = "rank"
EXPLAIN: Final = "explain"
MODELS: Final = (RECOMMEND, ENCODE, SEARCH, RANK, EXPLAIN)
# The models whose version folder may hold the bundle.
FRONT_DOORS: Final = (RECOMMEND, RANK)

# Networks in a bundle.
USER_TOWER: Final = "user_tower"
TEXT_ENCODER: Final = "text_encoder"
RANKER: Final = "ranker"

# Inputs.
USER_ID: Final = "user_id"  # INT64 (B, 1): NO_ID for a caller known only by their history
HISTORY: Final = "history"  # INT64 (B, L): item ids, oldest first; NO_ID entries are skipped
HISTORY_ONLY: Final = "history_only"  # BOOL (B, 1): the stored history is neither read nor excluded
TEXT: Final = "text"  # STRING (B, 1), UTF-8: what the user is after, in place of who they are; empty for none
EXCLUDE: Final = "exclude"  # INT64 (B, E): item ids that must not be recommended; NO_ID entries are skipped
ALLOW: Final = "allow"  # INT64 (B, A): only these may be recommended; a row of NO_ID alone allows everything
RULES: Final = "rules"  # STRING (B, 1), JSON of `fuserec.rules.Rules`; empty for none
K: Final = "k"  # INT32 (B, 1)
QUERY: Final = "query"  # FP32 (B, D)
CANDIDATES: Final = "candidates"  # INT64 (B, C): item ids to be ranked; NO_ID entries are skipped
ITEM_ID: Final = "item_id"  # INT64 (B, 1): the recommendation to explain

# Outputs.
ITEM_IDS: Final = "item_ids"  # INT64 (B, max k): best first, then NO_ID
SCORES: Final = "scores"  # FP32 (B, max k): then NO_SCORE
FALLBACK: Final = "fallback"  # BOOL (B, 1): nothing was known of the user, these are the most popular items
IGNORED: Final = "ignored"  # INT32 (B, 1): ids, and categories of the rules, that the catalogue does not hold
VERSION: Final = "version"  # INT64 (B, 1): the bundle that answered; not the model's own in an A/B split
USER_VECTOR: Final = "user_vector"  # FP32 (B, D)
RATINGS: Final = "ratings"  # FP32 (B, C): predicted ratings; NO_SCORE from a ranker that knows none, and in the tail
SCORE: Final = "score"  # FP32 (B, 1): what the item scores for the user
BASELINE: Final = "baseline"  # FP32 (B, 1): what it scores for somebody without a history
CONTRIBUTIONS: Final = "contributions"  # FP32 (B, L): what the score loses without the item of the history; tail 0

# Limits, checked by the client before a call and by the server on receipt.
MAX_BATCH: Final = 64
MAX_K: Final = 10_000
MAX_HISTORY: Final = 10_000
MAX_EXCLUDE: Final = 100_000
MAX_ALLOW: Final = 100_000
MAX_CANDIDATES: Final = 1_000
MAX_TEXT: Final = 10_000  # characters
