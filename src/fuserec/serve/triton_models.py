"""The models of the repository, as the server calls them; each only turns tensors into a pipeline call.

A batch of requests becomes one pipeline call. A request that asks for something impossible is answered with
INVALID_ARGUMENT by itself; the others of its batch are answered as if it had not been there.
"""

from __future__ import annotations

import abc
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from fuserec import contract
from fuserec.manifest import Manifest, served_bundle
from fuserec.rules import MAX_JSON, Rules
from fuserec.serve.explain import Explanation, explain
from fuserec.serve.pipeline import Answer, Pipeline, Query
from fuserec.serve.ranking import Ranked, RankQuery, RankStage
from fuserec.serve.users import NO_IDS, Users

# The tensors of a request by name.
Inputs = dict[str, Any]


class _Model(abc.ABC):
    """Opens the bundle and answers a list of requests; a model says how one request is read and a batch is run."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open and warm the pipeline; an exception here makes the model, and so the server, fail to start."""
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
        # The front door's version folder is the bundle; the single stages read the one of the same version.
        self.open(served_bundle(Path(args["model_repository"]).parent, int(args["model_version"])))

    def open(self, bundle: Path) -> None:
        """Open and warm what answers."""
        self.pipeline = Pipeline.open(bundle)
        self.pipeline.warm_up()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request, all good ones in one pipeline call."""
        responses: list[Any] = [None] * len(requests)
        good: list[int] = []
        batches: list[Any] = []
        for position, request in enumerate(requests):
            try:
                # At once: each look-up by name makes the whole list anew.
                batches.append(self.read({tensor.name(): tensor for tensor in request.inputs()}))
                good.append(position)
            except ValueError as error:
                responses[position] = pb_utils.InferenceResponse(
                    error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                )
        if good:
            for position, outputs in zip(good, self.run(batches), strict=True):
                tensors = [pb_utils.Tensor(name, np.ascontiguousarray(value)) for name, value in outputs.items()]
                responses[position] = pb_utils.InferenceResponse(tensors)
        return responses

    @abc.abstractmethod
    def read(self, inputs: Inputs) -> Any:
        """Turn the input tensors of a request into what `run` takes; `ValueError` refuses it."""

    @abc.abstractmethod
    def run(self, batches: Sequence[Any]) -> list[dict[str, NDArray[Any]]]:
        """Answer several requests at once: outputs by name for each."""


class RecommendModel(_Model):
    """`recommend`: who asks, for what, without what -> item_ids, scores, fallback, ignored, version."""

    def read(self, inputs: Inputs) -> list[Query]:
        """Read one request as a query a row."""
        users = _tensor(inputs, contract.USER_ID)[:, 0]
        ks = _checked_k(inputs, len(users))
        histories = _id_lists(inputs, contract.HISTORY, len(users), contract.MAX_HISTORY)
        excludes = _id_lists(inputs, contract.EXCLUDE, len(users), contract.MAX_EXCLUDE)
        only = _switches(inputs, contract.HISTORY_ONLY, len(users))
        texts = _strings(inputs, contract.TEXT, len(users), contract.MAX_TEXT)
        allows = _id_lists(inputs, contract.ALLOW, len(users), contract.MAX_ALLOW)
        rules = [Rules.from_json(text) for text in _strings(inputs, contract.RULES, len(users), MAX_JSON)]
        if any(texts) and not self.pipeline.reads_text:
            raise ValueError(f"{contract.TEXT} came, and this model reads none; expected a user id or a history")
        return [
            Query(int(user), history, exclude, int(k), only_given, text, allow, rule)
            for user, history, exclude, k, only_given, text, allow, rule in zip(
                users, histories, excludes, ks, only, texts, allows, rules, strict=True
            )
        ]

    def run(self, batches: Sequence[list[Query]]) -> list[dict[str, NDArray[Any]]]:
        """Recommend for the rows of all requests at once."""
        answers = iter(self.pipeline.recommend([query for batch in batches for query in batch]))
        return [_stack([next(answers) for _ in batch]) for batch in batches]


class EncodeModel(_Model):
    """`encode`: user_id, history, history_only -> user_vector, fallback, ignored."""

    def read(self, inputs: Inputs) -> list[Query]:
        """Read one request as a query a row."""
        users = _tensor(inputs, contract.USER_ID)[:, 0]
        histories = _id_lists(inputs, contract.HISTORY, len(users), contract.MAX_HISTORY)
        only = _switches(inputs, contract.HISTORY_ONLY, len(users))
        return [
            Query(int(user), history, NO_IDS, 1, given)
            for user, history, given in zip(users, histories, only, strict=True)
        ]

    def run(self, batches: Sequence[list[Query]]) -> list[dict[str, NDArray[Any]]]:
        """Encode the rows of all requests at once."""
        encoded = self.pipeline.encode([query for batch in batches for query in batch])
        ends = np.cumsum([len(batch) for batch in batches])
        return [
            {
                contract.USER_VECTOR: encoded.vectors[end - len(batch) : end],
                contract.FALLBACK: encoded.fallback[end - len(batch) : end, None],
                contract.IGNORED: encoded.ignored[end - len(batch) : end, None],
            }
            for batch, end in zip(batches, ends, strict=True)
        ]


class SearchModel(_Model):
    """`search`: query, exclude, k -> item_ids, scores."""

    def read(self, inputs: Inputs) -> tuple[NDArray[np.float32], list[NDArray[np.int64]], NDArray[np.int32]]:
        """Read one request as vectors, exclusion lists and k a row."""
        vectors = _tensor(inputs, contract.QUERY)
        if vectors.shape[1] != self.pipeline.dim:
            raise ValueError(f"{contract.QUERY} came with dimension {vectors.shape[1]}, expected {self.pipeline.dim}")
        if not np.isfinite(vectors).all():
            raise ValueError(f"{contract.QUERY} came with NaN or infinite values, expected finite ones")
        excludes = _id_lists(inputs, contract.EXCLUDE, len(vectors), contract.MAX_EXCLUDE)
        return vectors, excludes, _checked_k(inputs, len(vectors))

    def run(self, batches: Sequence[Any]) -> list[dict[str, NDArray[Any]]]:
        """Search for the rows of all requests at once."""
        vectors = np.concatenate([vectors for vectors, _, _ in batches])
        excludes = [exclude for _, rows, _ in batches for exclude in rows]
        widths = [int(ks.max()) for _, _, ks in batches]
        found = self.pipeline.search(vectors, max(widths), excludes)
        outputs, start = [], 0
        for (_, _, ks), width in zip(batches, widths, strict=True):
            rows = slice(start, start + len(ks))
            beyond = np.arange(width) >= ks[:, None]
            ids, scores = found.ids[rows, :width], found.scores[rows, :width]
            outputs.append(
                {
                    contract.ITEM_IDS: np.where(beyond, np.int64(contract.NO_ID), ids),
                    contract.SCORES: np.where(beyond, np.float32(-np.inf), scores),
                }
            )
            start += len(ks)
        return outputs


class RankModel(_Model):
    """`rank`: user_id, history, candidates, history_only -> item_ids, scores, ratings, ignored."""

    def open(self, bundle: Path) -> None:
        """Open the ranker, which needs neither the user tower nor the index."""
        manifest = Manifest.read(bundle)
        manifest.verify(bundle.parents[1])
        stage = RankStage.open(bundle, manifest)
        if stage is None:
            raise ValueError(f"{bundle} has no ranker, yet {contract.RANK} is among its models")
        self.stage, self.users = stage, Users.load(bundle, manifest)
        self.stage.rank([RankQuery(contract.NO_ID, NO_IDS, NO_IDS)], self.users)

    def read(self, inputs: Inputs) -> list[RankQuery]:
        """Read one request as a query a row."""
        users = _tensor(inputs, contract.USER_ID)[:, 0]
        histories = _id_lists(inputs, contract.HISTORY, len(users), contract.MAX_HISTORY)
        candidates = _id_lists(inputs, contract.CANDIDATES, len(users), contract.MAX_CANDIDATES)
        only = _switches(inputs, contract.HISTORY_ONLY, len(users))
        return [
            RankQuery(int(user), history, row, given)
            for user, history, row, given in zip(users, histories, candidates, only, strict=True)
        ]

    def run(self, batches: Sequence[list[RankQuery]]) -> list[dict[str, NDArray[Any]]]:
        """Rank for the rows of all requests at once."""
        answers = iter(self.stage.rank([query for batch in batches for query in batch], self.users))
        return [_stack_ranked([next(answers) for _ in batch]) for batch in batches]


class ExplainModel(_Model):
    """`explain`: user_id, history, item_id, history_only -> item_ids, contributions, score, baseline."""

    def read(self, inputs: Inputs) -> list[tuple[Query, int]]:
        """Read one request as a query and an item a row."""
        users = _tensor(inputs, contract.USER_ID)[:, 0]
        items = _tensor(inputs, contract.ITEM_ID)[:, 0]
        _same_rows(contract.ITEM_ID, len(items), len(users))
        histories = _id_lists(inputs, contract.HISTORY, len(users), contract.MAX_HISTORY)
        only = _switches(inputs, contract.HISTORY_ONLY, len(users))
        for item in items:
            self.pipeline.check_item(int(item))
        return [
            (Query(int(user), history, NO_IDS, 1, given), int(item))
            for user, history, given, item in zip(users, histories, only, items, strict=True)
        ]

    def run(self, batches: Sequence[list[tuple[Query, int]]]) -> list[dict[str, NDArray[Any]]]:
        """Explain row by row: each is a batch of its own to the user tower."""
        return [_stack_explained([explain(self.pipeline, query, item) for query, item in batch]) for batch in batches]


def _stack_ranked(answers: Sequence[Ranked]) -> dict[str, NDArray[Any]]:
    rows, width = len(answers), max(len(answer.item_ids) for answer in answers)
    outputs: dict[str, NDArray[Any]] = {
        contract.ITEM_IDS: np.full((rows, width), contract.NO_ID, dtype=np.int64),
        contract.SCORES: np.full((rows, width), -np.inf, dtype=np.float32),
        contract.RATINGS: np.full((rows, width), np.nan, dtype=np.float32),
        contract.IGNORED: np.array([[answer.ignored] for answer in answers], dtype=np.int32),
    }
    for row, answer in enumerate(answers):
        here = slice(0, len(answer.item_ids))
        outputs[contract.ITEM_IDS][row, here] = answer.item_ids
        outputs[contract.SCORES][row, here] = answer.scores
        outputs[contract.RATINGS][row, here] = answer.ratings
    return outputs


def _stack_explained(answers: Sequence[Explanation]) -> dict[str, NDArray[Any]]:
    rows, width = len(answers), max(len(answer.item_ids) for answer in answers)
    ids = np.full((rows, width), contract.NO_ID, dtype=np.int64)
    contributions = np.zeros((rows, width), dtype=np.float32)
    for row, answer in enumerate(answers):
        ids[row, : len(answer.item_ids)] = answer.item_ids
        contributions[row, : len(answer.item_ids)] = answer.contributions
    return {
        contract.ITEM_IDS: ids,
        contract.CONTRIBUTIONS: contributions,
        contract.SCORE: np.array([[answer.score] for answer in answers], dtype=np.float32),
        contract.BASELINE: np.array([[answer.baseline] for answer in answers], dtype=np.float32),
    }


def _stack(answers: Sequence[Answer]) -> dict[str, NDArray[Any]]:
    """Make the output tensors of one request; rows with a smaller k are filled up with the tail."""
    width = max(len(answer.item_ids) for answer in answers)
    ids = np.full((len(answers), width), contract.NO_ID, dtype=np.int64)
    scores = np.full((len(answers), width), -np.inf, dtype=np.float32)
    for row, answer in enumerate(answers):
        ids[row, : len(answer.item_ids)] = answer.item_ids
        scores[row, : len(answer.item_ids)] = answer.scores
    return {
        contract.ITEM_IDS: ids,
        contract.SCORES: scores,
        contract.FALLBACK: np.array([[answer.fallback] for answer in answers]),
        contract.IGNORED: np.array([[answer.ignored] for answer in answers], dtype=np.int32),
        contract.VERSION: np.array([[answer.version] for answer in answers], dtype=np.int64),
    }


def _tensor(inputs: Inputs, name: str) -> NDArray[Any]:
    """Return a required input; the server has checked its dtype against the configuration.

    That it came at all is checked here: to the server, an optional input makes up for the one that is missing.
    """
    if name not in inputs:
        raise ValueError(f"{name} did not come, expected it in every request")
    array = _matrix(name, inputs[name])
    if array.shape[0] == 0:
        raise ValueError(f"{name} came with 0 rows, expected at least 1")
    return array


def _matrix(name: str, tensor: Any) -> NDArray[Any]:
    """Return the value of an input.

    Servers before core pull request 434 keep the number of rows in 32 bits: with a multiple of 2^32 a request passes
    as one without a batch axis.
    """
    array: NDArray[Any] = tensor.as_numpy()
    if array.ndim != 2:
        raise ValueError(f"{name} came with shape {array.shape}, expected rows and columns")
    return array


def _checked_k(inputs: Inputs, rows: int) -> NDArray[np.int32]:
    """Return k a row."""
    ks: NDArray[np.int32] = _tensor(inputs, contract.K)[:, 0]
    _same_rows(contract.K, len(ks), rows)
    if ks.min() < 1 or ks.max() > contract.MAX_K:
        raise ValueError(f"{contract.K} came as {ks.min()}..{ks.max()}, expected 1 to {contract.MAX_K}")
    return ks


def _id_lists(inputs: Inputs, name: str, rows: int, limit: int) -> list[NDArray[np.int64]]:
    """Return an optional list of ids a row, without the padding."""
    tensor = inputs.get(name)
    if tensor is None:
        return [NO_IDS] * rows
    array: NDArray[np.int64] = _matrix(name, tensor)
    _same_rows(name, len(array), rows)
    if array.shape[1] > limit:
        raise ValueError(f"{name} came with {array.shape[1]} ids a row, expected at most {limit}")
    if not array.size:
        return [NO_IDS] * rows
    return [row[row != contract.NO_ID] for row in array]


def _switches(inputs: Inputs, name: str, rows: int) -> list[bool]:
    """Return an optional switch a row; off where it did not come."""
    tensor = inputs.get(name)
    if tensor is None:
        return [False] * rows
    array: NDArray[np.bool_] = _matrix(name, tensor)[:, 0]
    _same_rows(name, len(array), rows)
    return [bool(value) for value in array]


def _strings(inputs: Inputs, name: str, rows: int, limit: int) -> list[str]:
    """Return an optional text a row; empty where it did not come."""
    tensor = inputs.get(name)
    if tensor is None:
        return [""] * rows
    array: NDArray[np.object_] = _matrix(name, tensor)[:, 0]
    _same_rows(name, len(array), rows)
    try:
        texts = [bytes(value).decode("utf-8") for value in array]
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 ({error.reason} at byte {error.start})") from None
    longest = max(map(len, texts))
    if longest > limit:
        raise ValueError(f"{name} came with {longest} characters, expected at most {limit}")
    return texts


def _same_rows(name: str, came: int, expected: int) -> None:
    if came != expected:
        raise ValueError(f"{name} came with {came} rows, expected {expected}")
