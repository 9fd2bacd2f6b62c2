"""Writes real files of implicit 0.7.3 over synthetic data: `python make_implicit.py`, with implicit installed.

implicit-{als,bpr,logistic}.npz   what `model.save` wrote
implicit.json                     the data, and what `model.recommend` answered
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from implicit.cpu.lmf import LogisticMatrixFactorization
from scipy.sparse import csr_matrix

FOLDER = Path(__file__).parent
N_USERS, N_ITEMS, FACTORS, K = 14, 11, 3, 4
MODELS = {
    "als": AlternatingLeastSquares, "bpr": BayesianPersonalizedRanking, "logistic": LogisticMatrixFactorization,
}  # fmt: skip


def main() -> None:
    rng = np.random.default_rng(0)
    pairs = [(user, int(item)) for user in range(N_USERS) for item in rng.permutation(N_ITEMS)[: 3 + user % 4]]
    users, items = np.array(pairs).T
    matrix = csr_matrix((np.ones(len(pairs), np.float32), (users, items)), shape=(N_USERS, N_ITEMS))
    answers = {}
    for name, model_type in MODELS.items():
        model = model_type(factors=FACTORS, iterations=20, random_state=0)
        model.fit(matrix, show_progress=False)
        model.save(FOLDER / f"implicit-{name}.npz")
        ids, scores = model.recommend(np.arange(N_USERS), matrix, N=K, filter_already_liked_items=True)
        answers[name] = {"items": ids.tolist(), "scores": scores.tolist()}
    (FOLDER / "implicit.json").write_text(json.dumps({"pairs": pairs, "answers": answers}) + "\n")


if __name__ == "__main__":
    main()
