"""The client library: numpy and tritonclient, nothing heavier.

    from fuserec.client import Recommender

    with Recommender("localhost:8001") as recommender:
        answer = recommender.recommend(user_id=42, history=[50, 181], k=10, timeout_ms=100)
        for item_id, score in answer:
            ...

`AsyncRecommender` has the same calls as coroutines.
"""

from fuserec.client._client import AsyncRecommender, Recommender
from fuserec.client._errors import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerFault,
    ServerUnavailable,
)
from fuserec.client._wire import Explanation, Ranked, Recommendations

__all__ = [
    "AsyncRecommender",
    "ClientError",
    "DeadlineExceeded",
    "Explanation",
    "InvalidRequest",
    "ModelNotFound",
    "Ranked",
    "Recommendations",
    "Recommender",
    "ServerFault",
    "ServerUnavailable",
]
