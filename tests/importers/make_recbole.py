"""Writes real files of RecBole 1.2.1 over synthetic data: `python make_recbole.py`, with recbole installed.

recbole-{BPR,SASRec,GRU4Rec}.pth   what the trainer saved after an epoch
recbole.json                       by model: its numbering, what was asked, and what `full_sort_predict` answered
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import get_model, get_trainer, init_seed

FOLDER = Path(__file__).parent.absolute()
N_USERS, N_ITEMS = 12, 9
COMMON = {
    "epochs": 1, "embedding_size": 4, "train_batch_size": 64, "use_gpu": False, "MAX_ITEM_LIST_LENGTH": 5, "seed": 0,
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "data_path": "data", "checkpoint_dir": "saved", "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "show_progress": False, "learner": "sgd",  # which keeps no state, so that the files stay small
}  # fmt: skip
OWN = {
    "BPR": {},
    "SASRec": {
        "hidden_size": 4, "inner_size": 6, "n_layers": 1, "n_heads": 2, "hidden_act": "swish", "layer_norm_eps": 1e-5,
        "initializer_range": 0.5, "train_neg_sample_args": None,
    },
    "GRU4Rec": {"hidden_size": 6, "num_layers": 1, "train_neg_sample_args": None},
}  # fmt: skip


def write_data() -> None:
    """Ids whose order is neither that of their first appearance nor that of the numbers given to them."""
    rng = np.random.default_rng(0)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in rng.permutation(N_USERS):
        for step, item in enumerate(rng.permutation(N_ITEMS)[: 4 + user % 4]):
            lines.append(f"{5 + 3 * user}\t{100 + 7 * item}\t{step}")
    folder = Path("data/made")
    folder.mkdir(parents=True)
    (folder / "made.inter").write_text("\n".join(lines) + "\n")


@torch.no_grad()
def ask(model: torch.nn.Module, dataset: object) -> dict[str, list[list[float]]]:
    """Every user of BPR; for the others histories of every length."""
    model.eval()
    if "user_embedding.weight" in model.state_dict():
        users = torch.arange(1, N_USERS + 1)
        scores = model.full_sort_predict(Interaction({"user_id": users})).view(N_USERS, -1)
        return {"users": users.tolist(), "scores": scores.tolist()}
    histories = [[(start + 2 * step) % N_ITEMS + 1 for step in range(1 + start % 5)] for start in range(10)]
    padded = torch.tensor([history + [0] * (5 - len(history)) for history in histories])
    lengths = torch.tensor([len(history) for history in histories])
    scores = model.full_sort_predict(Interaction({"item_id_list": padded, "item_length": lengths}))
    return {"histories": histories, "scores": scores.tolist()}


def main() -> None:
    answers = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        write_data()
        for name, own in OWN.items():
            config = Config(model=name, dataset="made", config_dict=COMMON | own)
            init_seed(0, True)
            dataset = create_dataset(config)
            train, valid, _ = data_preparation(config, dataset)
            model = get_model(name)(config, train._dataset)
            trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
            trainer.saved_model_file = f"saved/{name}.pth"
            trainer.fit(train, valid, saved=True, show_progress=False)
            shutil.copy(f"saved/{name}.pth", FOLDER / f"recbole-{name}.pth")
            users, items = map(dataset.field2id_token.get, (dataset.uid_field, dataset.iid_field))
            tokens = {"user_id": users.tolist(), "item_id": items.tolist()}
            answers[name] = {"tokens": tokens, **ask(model, dataset)}
    (FOLDER / "recbole.json").write_text(json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()
