"""The models of the repository, as the server calls them; each only turns tensors into a pipeline call.

A batch of requests becomes one pipeline call. A request that asks for something impossible is answered with
INVALID_ARGUMENT by itself; the others of its batch are answered as if it had not been there.
"""

from __future__ import annotations

import abc
import gc
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from fuserec import contract
from fuserec.errors import DeviceError, DeviceLost
from fuserec.manifest import Manifest, served_bundle
from fuserec.rules import MAX_JSON, Rules
from fuserec.serve.device import Device
from fuserec.serve.experiment import Experiments
from fuserec.serve.explain import Explanation, explain
from fuserec.serve.faults import Departure, device_fault
from fuserec.serve.handover import Handover, ServerLedger
from fuserec.serve.heartbeat import Heartbeat
from fuserec.serve.inputs import Inputs, checked_k, id_lists, required, same_rows, strings, switches
from fuserec.serve.logs import log_to
from fuserec.serve.observing import Observing
from fuserec.serve.pipeline import Answer, Pipeline
from fuserec.serve.plain import PlainAnswers, read_plain
from fuserec.serve.query import Query
from fuserec.serve.ranking import Ranked, RankQuery, RankStage
from fuserec.serve.tally import Tally
from fuserec.serve.telemetry import STAGES, TOTAL, Execution, Telemetry
from fuserec.serve.users import NO_IDS, Users

logger = logging.getLogger(__name__)

# The trace id in a `traceparent` (W3C Trace Context), which the launcher has the server make a parameter of a request.
_TRACE: Final = re.compile('"traceparent":"[0-9a-f]{2}-([0-9a-f]{32})-')
_NO_SCORE: Final = np.float32(contract.NO_SCORE)


class _Model(abc.ABC):
    """Opens the bundle and answers a list of requests; a model says how one request is read and a batch is run."""

    stages: Sequence[str] = ()
    searches = True  # else it starts without what compiles the search

    def initialize(self, args: dict[str, str]) -> None:
        """Open and warm the pipeline; an exception here makes the model, and so the server, fail to start."""
        model, version = args["model_name"], int(args["model_version"])
        self.heartbeat = Heartbeat.of_environment()
        self.heartbeat.start()
        self.observing = Observing.of_environment()
        log_to(sys.stderr, self.observing.log_format, model=model, version=version)
        logging.getLogger("fuserec").setLevel(logging.INFO)
        self.departure = Departure()
        self.device = self.choose_device()
        logger.info("device: %s", self.device)
        if self.searches:
            _share_cores(args["model_config"])
        # The front door's version folder is the bundle; the single stages read the one of the same version.
        # The server has links to version folders, see `fuserec.serve.view`; the vendor's, set up by hand, the folders.
        repository = (Path(args["model_repository"]) / str(version)).resolve().parents[1]
        bundle = served_bundle(repository, version)
        self.open(bundle)
        self.tally = Tally()
        created = Manifest.read(bundle).created
        self.telemetry = Telemetry(self.tally, model, version, self.stages, created, self.device.kind)
        self.watch(bundle)
        # What is there now stays: a full collection would look through all of it, and take 100 ms of a caller's time.
        gc.collect()
        gc.freeze()
        self.handover = Handover(self.tally, ServerLedger(pb_utils))
        self.handover.start()

    def finalize(self) -> None:
        """Hand over what was counted last; the server has let every request finish."""
        self.handover.stop()
        self.heartbeat.stop()

    def choose_device(self) -> Device:
        """Return where it computes."""
        return Device.of_environment()

    def open(self, bundle: Path) -> None:
        """Open and warm what answers."""
        self.pipeline = Pipeline.open(bundle, self.device)
        self.pipeline.warm_up()

    def watch(self, bundle: Path) -> None:
        """Begin to count: what was done to warm up is nobody's request."""
        self.pipeline.watcher = self.telemetry

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request, and count it."""
        self.departure.hold()
        self.heartbeat.begin()
        try:
            return self._execute(requests)
        finally:
            self.heartbeat.end()

    def _execute(self, requests: Sequence[Any]) -> list[Any]:
        try:
            with self.telemetry.executing():
                responses = self.answer(requests)
        except Exception as error:
            execution = self.telemetry.executed()
            logger.exception("an execution failed", extra=_fields(requests, execution))
            fault = device_fault(error)
            if fault is None:
                raise
            if isinstance(fault, DeviceLost):
                self.departure.begin()
            return [_unavailable(fault) for _ in requests]
        execution = self.telemetry.executed()
        if execution.seconds[TOTAL] > 1e-3 * self.observing.slow_ms:
            logger.warning("a slow execution", extra=_fields(requests, execution))
        return responses

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request, all good ones in one pipeline call."""
        responses: list[Any] = [None] * len(requests)
        good: list[int] = []
        batches: list[Any] = []
        for position, request in enumerate(requests):
            # At once: each look-up by name makes the whole list anew.
            inputs = {tensor.name(): tensor for tensor in request.inputs()}
            try:
                batches.append(self.read(inputs))
                good.append(position)
            except ValueError as error:
                self.telemetry.refused(max(tensor.shape()[0] for tensor in inputs.values()))
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

    stages = STAGES[:-1]

    def watch(self, bundle: Path) -> None:
        """Begin to count, and to follow what is tried beside this version."""
        super().watch(bundle)
        open_candidate = partial(Pipeline.open, device=self.device)
        self.experiments = Experiments(
            bundle,
            self.pipeline,
            self.tally,
            self.telemetry,
            open_candidate=open_candidate,
            on_change=self.heartbeat.tell,
        )
        self.experiments.start()
        # They are the same in every plain answer, and the server keeps what it has copied of a tensor.
        self.constants = [
            pb_utils.Tensor(contract.FALLBACK, np.zeros((1, 1), dtype=np.bool_)),
            pb_utils.Tensor(contract.VERSION, np.array([[int(bundle.name)]], dtype=np.int64)),
            pb_utils.Tensor(contract.IGNORED, np.zeros((1, 1), dtype=np.int32)),
        ]

    def finalize(self) -> None:
        """End what is tried beside this version."""
        self.experiments.stop()
        super().finalize()

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """Answer plain requests by the shortest way, others by that of all models."""
        asked = read_plain([request.inputs() for request in requests])
        answers = None if asked is None else self.experiments.recommend_plain(asked)
        if asked is None or answers is None:
            return super().answer(requests)
        return [
            self._plain_response(answers, row, k, ignored)
            for row, (k, ignored) in enumerate(zip(asked.ks, answers.ignored, strict=True))
        ]

    def _plain_response(self, answers: PlainAnswers, row: int, k: int, ignored: int) -> Any:
        ids, scores = answers.item_ids[row : row + 1, :k], answers.scores[row : row + 1, :k]
        if ids[0, -1] == contract.NO_ID:
            scores = np.where(ids == contract.NO_ID, _NO_SCORE, scores)
        constants = self.constants
        if ignored:
            constants = [*constants[:-1], pb_utils.Tensor(contract.IGNORED, np.array([[ignored]], dtype=np.int32))]
        tensors = [pb_utils.Tensor(contract.ITEM_IDS, ids), pb_utils.Tensor(contract.SCORES, scores), *constants]
        return pb_utils.InferenceResponse(tensors)

    def read(self, inputs: Inputs) -> list[Query]:
        """Read one request as a query a row."""
        users = required(inputs, contract.USER_ID)[:, 0].tolist()
        ks = checked_k(inputs, len(users))
        histories = id_lists(inputs, contract.HISTORY, len(users), contract.MAX_HISTORY)
        excludes = id_lists(inputs, contract.EXCLUDE, len(users), contract.MAX_EXCLUDE)
        only = switches(inputs, contract.HISTORY_ONLY, len(users))
        texts = strings(inputs, contract.TEXT, len(users), contract.MAX_TEXT)
        allows = id_lists(inputs, contract.ALLOW, len(users), contract.MAX_ALLOW)
        rules = [Rules.from_json(text) for text in strings(inputs, contract.RULES, len(users), MAX_JSON)]
        if any(texts) and not self.pipeline.reads_text:
            raise ValueError(f"{contract.TEXT} came, and this model reads none; expected a user id or a history")
        return [
            Query(user, history, exclude, k, only_given, text, allow, rule)
            for user, history, exclude, k, only_given, text, allow, rule in zip(
                users, histories, excludes, ks, only, texts, allows, rules, strict=True
            )
        ]

    def run(self, batches: Sequence[list[Query]]) -> list[dict[str, NDArray[Any]]]:
        """Recommend for the rows of all requests at once."""
        answers = iter(self.experiments.recommend([query for batch in batches for query in batch]))
        return [_stack([next(answers) for _ in batch]) for batch in batches]


class EncodeModel(_Model):
    """`encode`: user_id, history, history_only -> user_vector, fallback, ignored."""

    searches = False

    def open(self, bundle: Path) -> None:
        """Open the pipeline, and warm the stage of it that is used."""
        self.pipeline = Pipeline.open(bundle, self.device)
        self.pipeline.encode([Query(contract.NO_ID, NO_IDS, NO_IDS, 1)])

    def read(self, inputs: Inputs) -> list[Query]:
        """Read one request as a query a row."""
        users = required(inputs, contract.USER_ID)[:, 0]
        histories = id_lists(inputs, contract.HISTORY, len(users), contract.MAX_HISTORY)
        only = switches(inputs, contract.HISTORY_ONLY, len(users))
        return [
            Query(int(user), history, NO_IDS, 1, given)
            for user, history, given in zip(users, histories, only, strict=True)
        ]

    def run(self, batches: Sequence[list[Query]]) -> list[dict[str, NDArray[Any]]]:
        """Encode the rows of all requests at once."""
        encoded = self.pipeline.encode([query for batch in batches for query in batch])
        self.telemetry.answered(len(encoded.vectors), int(encoded.fallback.sum()), int(encoded.ignored.sum()))
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

    def read(self, inputs: Inputs) -> tuple[NDArray[np.float32], list[NDArray[np.int64]], list[int]]:
        """Read one request as vectors, exclusion lists and k a row."""
        vectors = required(inputs, contract.QUERY)
        if vectors.shape[1] != self.pipeline.dim:
            raise ValueError(f"{contract.QUERY} came with dimension {vectors.shape[1]}, expected {self.pipeline.dim}")
        if not np.isfinite(vectors).all():
            raise ValueError(f"{contract.QUERY} came with NaN or infinite values, expected finite ones")
        self.pipeline.check_vectors(vectors)
        excludes = id_lists(inputs, contract.EXCLUDE, len(vectors), contract.MAX_EXCLUDE)
        return vectors, excludes, checked_k(inputs, len(vectors))

    def run(self, batches: Sequence[Any]) -> list[dict[str, NDArray[Any]]]:
        """Search for the rows of all requests at once."""
        vectors = np.concatenate([vectors for vectors, _, _ in batches])
        excludes = [exclude for _, rows, _ in batches for exclude in rows]
        widths = [max(ks) for _, _, ks in batches]
        found = self.pipeline.search(vectors, max(widths), excludes)
        self.telemetry.answered(len(vectors))
        outputs, start = [], 0
        for (_, _, ks), width in zip(batches, widths, strict=True):
            rows = slice(start, start + len(ks))
            beyond = np.arange(width) >= np.array(ks)[:, None]
            ids = np.where(beyond, np.int64(contract.NO_ID), found.ids[rows, :width])
            outputs.append(
                {
                    contract.ITEM_IDS: ids,
                    contract.SCORES: np.where(ids == contract.NO_ID, _NO_SCORE, found.scores[rows, :width]),
                }
            )
            start += len(ks)
        return outputs


class RankModel(_Model):
    """`rank`: user_id, history, candidates, history_only -> item_ids, scores, ratings, ignored."""

    searches = False

    def open(self, bundle: Path) -> None:
        """Open the ranker, which needs neither the user tower nor the index."""
        manifest = Manifest.read(bundle)
        manifest.verify(bundle.parents[1])
        stage = RankStage.open(bundle, manifest, self.device)
        if stage is None:
            raise ValueError(f"{bundle} has no ranker, yet {contract.RANK} is among its models")
        self.stage, self.users = stage, Users.load(bundle, manifest)
        self.stage.rank([RankQuery(contract.NO_ID, NO_IDS, NO_IDS)], self.users)

    def watch(self, bundle: Path) -> None:
        """Count what every model counts: there is no pipeline to be watched."""

    def read(self, inputs: Inputs) -> list[RankQuery]:
        """Read one request as a query a row."""
        users = required(inputs, contract.USER_ID)[:, 0]
        histories = id_lists(inputs, contract.HISTORY, len(users), contract.MAX_HISTORY)
        candidates = id_lists(inputs, contract.CANDIDATES, len(users), contract.MAX_CANDIDATES)
        only = switches(inputs, contract.HISTORY_ONLY, len(users))
        return [
            RankQuery(int(user), history, row, given)
            for user, history, row, given in zip(users, histories, candidates, only, strict=True)
        ]

    def run(self, batches: Sequence[list[RankQuery]]) -> list[dict[str, NDArray[Any]]]:
        """Rank for the rows of all requests at once."""
        ranked = self.stage.rank([query for batch in batches for query in batch], self.users)
        self.telemetry.answered(len(ranked), unknown_ids=sum(answer.ignored for answer in ranked))
        answers = iter(ranked)
        return [_stack_ranked([next(answers) for _ in batch]) for batch in batches]


class ExplainModel(_Model):
    """`explain`: user_id, history, item_id, history_only -> item_ids, contributions, score, baseline."""

    def open(self, bundle: Path) -> None:
        """Open the pipeline, and warm the stages of it that are used: a table on the device is not among them."""
        self.pipeline = Pipeline.open(bundle, self.device)
        self.pipeline.warm_up_scores()

    def read(self, inputs: Inputs) -> list[tuple[Query, int]]:
        """Read one request as a query and an item a row."""
        users = required(inputs, contract.USER_ID)[:, 0]
        items = required(inputs, contract.ITEM_ID)[:, 0]
        same_rows(contract.ITEM_ID, len(items), len(users))
        histories = id_lists(inputs, contract.HISTORY, len(users), contract.MAX_HISTORY)
        only = switches(inputs, contract.HISTORY_ONLY, len(users))
        for item in items:
            self.pipeline.check_item(int(item))
        return [
            (Query(int(user), history, NO_IDS, 1, given), int(item))
            for user, history, given, item in zip(users, histories, only, items, strict=True)
        ]

    def run(self, batches: Sequence[list[tuple[Query, int]]]) -> list[dict[str, NDArray[Any]]]:
        """Explain row by row: each is a batch of its own to the user tower."""
        self.telemetry.answered(sum(map(len, batches)))
        return [_stack_explained([explain(self.pipeline, query, item) for query, item in batch]) for batch in batches]


def _unavailable(fault: DeviceError) -> Any:
    """Return the response to a request that a fault of the GPU met: another process may answer it."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(fault), pb_utils.TritonError.UNAVAILABLE))


def _share_cores(model_config: str) -> None:
    """Let a search use as many cores as there are for each process of its model."""
    import numba

    processes = sum(group["count"] for group in json.loads(model_config)["instance_group"])
    most = numba.get_num_threads()  # as many as its own settings allow
    numba.set_num_threads(max(1, min(most, len(os.sched_getaffinity(0))) // processes))


def _fields(requests: Sequence[Any], execution: Execution) -> dict[str, Any]:
    """Return what a log line tells of an execution: the traces that its requests belong to, rows, milliseconds."""
    traces = [_TRACE.search(request.parameters()) for request in requests]
    return {
        "fields": {
            "trace_ids": [trace[1] for trace in traces if trace],
            "rows": execution.rows,
            "stages_ms": {stage: round(1e3 * seconds, 3) for stage, seconds in execution.seconds.items()},
        }
    }


def _stack_ranked(answers: Sequence[Ranked]) -> dict[str, NDArray[Any]]:
    rows, width = len(answers), max(len(answer.item_ids) for answer in answers)
    outputs: dict[str, NDArray[Any]] = {
        contract.ITEM_IDS: np.full((rows, width), contract.NO_ID, dtype=np.int64),
        contract.SCORES: np.full((rows, width), _NO_SCORE),
        contract.RATINGS: np.full((rows, width), _NO_SCORE),
        contract.IGNORED: np.array([[answer.ignored] for answer in answers], dtype=np.int32),
    }
    for row, answer in enumerate(answers):
        here = slice(0, len(answer.item_ids))
        outputs[contract.ITEM_IDS][row, here] = answer.item_ids
        outputs[contract.SCORES][row, here] = answer.scores
        outputs[contract.RATINGS][row, here] = np.where(np.isnan(answer.ratings), _NO_SCORE, answer.ratings)
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
    """Make the output tensors of one request; rows with a smaller k are filled up with the tail.

    What is minus infinity to the pipeline travels as `NO_SCORE`. It is looked for only where a row ends in no item, as
    few do: with cold caches a call of numpy costs 10 us.
    """
    if len(answers) == 1:  # as most are
        ids, scores = answers[0].item_ids[None], answers[0].scores[None]
    else:
        width = max(len(answer.item_ids) for answer in answers)
        ids = np.full((len(answers), width), contract.NO_ID, dtype=np.int64)
        scores = np.full((len(answers), width), _NO_SCORE)
        for row, answer in enumerate(answers):
            ids[row, : len(answer.item_ids)] = answer.item_ids
            scores[row, : len(answer.item_ids)] = answer.scores
    if any(answer.item_ids[-1] == contract.NO_ID for answer in answers):
        scores = np.where(ids == contract.NO_ID, _NO_SCORE, scores)
    return {
        contract.ITEM_IDS: ids,
        contract.SCORES: scores,
        contract.FALLBACK: np.array([[answer.fallback] for answer in answers]),
        contract.IGNORED: np.array([[answer.ignored] for answer in answers], dtype=np.int32),
        contract.VERSION: np.array([[answer.version] for answer in answers], dtype=np.int64),
    }
