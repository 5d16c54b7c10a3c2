"""Drop-in for the class of IFRU's released scripts (arXiv 2307.02147).

`from ifru_ext.compat.ifru import influence_unlearn` in the place of a script's own class, and the
rest of the script stays: its models, its data generator, its files. By default the engine of this
package does the work; `mode="reference"` takes the released steps one by one.
"""

from __future__ import annotations

import math
import os
import time
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ifru_ext.compat.evaluation import Evaluation
from ifru_ext.compat.folder import FolderData, load_folder, prepare
from ifru_ext.compat.scripts import ScriptData, ScriptModel, propagates
from ifru_ext.errors import InputError, as_integer
from ifru_ext.files import write_atomic
from ifru_ext.forget import Forget
from ifru_ext.graph import BipartiteGraph
from ifru_ext.interactions import Interactions
from ifru_ext.models import MatrixFactorization, RecommenderModel
from ifru_ext.objective import Objective
from ifru_ext.operators import HessianOperator
from ifru_ext.removal import parse
from ifru_ext.unlearning import unlearn

__all__ = ["FolderData", "Mode", "influence_unlearn", "load_folder", "prepare"]

# The released rule stops after more steps than this without a better validation AUC.
_PATIENCE = 10
# LightGCN's scripts change the rows above this quantile of their score.
_QUANTILE = 0.4
# Of Adam, the defaults of its authors and of torch.
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8

_Ids = npt.NDArray[np.int64]


class Mode(Enum):
    """Who does the work.

    EXACT: `ifru_ext.unlearn`, with its defaults. REFERENCE: the rules of the released scripts.
    """

    EXACT = "exact"
    REFERENCE = "reference"


class influence_unlearn:  # noqa: N801 (the scripts' own name)
    """Removes `train_random` from a trained model of the scripts.

    Args:
        save_name: File that the `state_dict` is written to, in an existing folder.
        if_epoch: Limit on steps; reference mode only.
        if_lr: Step length of Adam; reference mode only. The scripts' own is 1e4 for Book-Crossing.
        k_hop: Hop of the rows that may change; reference mode only, exact mode chooses by itself.
        init_range: Not used: p starts from 0, as it does with the 0 that the scripts give.
        mode: "exact" or "reference".
        objective: What the model was trained on, exact mode only; by default binary cross-entropy
            without a regulariser, as the scripts train. Reference mode has no other.

    Attributes:
        p: [rows * d, 1] float tensor, the last solution, users first: it changes the embeddings by
            p / n_train. None before there is one.
        rows: [rows] int64 node ids, users then items, that p is of; None before.

    Raises:
        InputError: An argument is wrong.
    """

    def __init__(
        self,
        save_name: str | os.PathLike[str],
        if_epoch: int = 100,
        if_lr: float = 1e-2,
        k_hop: int = 1,
        init_range: float = 1e-4,
        *,
        mode: Mode | str = Mode.EXACT,
        objective: Objective | None = None,
    ) -> None:
        self.mode: Mode = parse(Mode, "mode", mode)
        if self.mode is Mode.REFERENCE and objective not in (None, Objective("bce")):
            raise InputError("objective: expected None in mode 'reference', which has its own")
        if not 0 < if_lr < math.inf:
            raise InputError(f"if_lr: expected a positive number, got {if_lr}")
        self.save_name = save_name
        self.if_epoch = as_integer("if_epoch", if_epoch, 1)
        self.if_lr = if_lr
        self.k_hop = as_integer("k_hop", k_hop, 0)
        self.range = init_range
        self.objective = Objective("bce") if objective is None else objective
        self.p: Tensor | None = None
        self.rows: Tensor | None = None

    def compute_hessian_with_test(self, model: Any = None, data_generator: Any = None) -> None:
        """Unlearns, in place, prints the progress, and writes the best `state_dict`.

        Exact mode changes the graph of a LightGCN (`model.Graph`) to the one without the forgotten
        rows, writes the model and leaves it in `model`. The graph is not in the `state_dict`: who
        loads the file into another model sets it to the data generator's `ChangedGraph`. Reference
        mode goes step by step, writes the model of the best validation AUC and leaves the last one
        in `model`, on the old graph, as the released scripts do: they load the file afterwards. It
        computes on the device of the model, exact mode on the CPU.

        Args:
            model: Matrix factorisation with `user_embeddings`, `item_embeddings` and `predict`, or
                LightGCN with `embedding_user`, `embedding_item`, `n_layers`, `Graph` and `predict`.
            data_generator: With the frames `train`, `train_normal` (kept), `train_random` (to
                forget), `valid` and `test`, each with columns user, item, label, and with
                `n_users`, `n_items`, `n_train`; in reference mode for LightGCN `ChangedGraph` and
                `changed_data` too. A frame is a DataFrame, a dict of arrays or a structured array.

        Raises:
            InputError: Something is missing or does not fit together, `save_name` lies in no
                folder, or the steps of reference mode diverge.
        """
        folder = Path(self.save_name).parent
        if not folder.is_dir():
            raise InputError(f"save_name: expected a file in an existing folder, got {folder}")
        self.p = self.rows = None
        data = ScriptData.of(data_generator)
        script = ScriptModel.of(model, data)
        reference = self.mode is Mode.REFERENCE
        old = script.old.to(script.device) if reference else script.old
        valid, test = (
            Evaluation(rows, data.forgotten, old.embedding.device)
            for rows in (data.valid, data.test)
        )
        print(f"before: valid AUC {valid(old.features())}, test AUC {test(old.features())}")
        if reference:
            self._reference(script, old, data, valid, test)
        else:
            new = self._exact(script, data)
            print(f"after: valid AUC {valid(new.features())}, test AUC {test(new.features())}")

    def compute_neighbor_influence_clip(
        self, data_generator: Any, k_hop: int = 1
    ) -> tuple[_Ids, _Ids]:
        """The rows that reference mode changes, by the importance of each hop.

        s_0(v) = #forgotten rows at v / degree(v), with degree(v) = 1 + all training rows at v;
        s_k(w) = sum over w's neighbours v, and w itself, of s_{k-1}(v) / degree(w). For matrix
        factorisation all rows of the hop asked for; for LightGCN, whose data generator has a
        `ChangedGraph`, those of hop 1 above its 40 % quantile.

        Args:
            data_generator: As for `compute_hessian_with_test`.
            k_hop: The hop, for matrix factorisation.

        Returns:
            User ids and item ids, int64, ascending.
        """
        data = ScriptData.of(data_generator)
        rows = _selected(data, k_hop, clip=propagates(data_generator)).numpy()
        of_user = rows < data.train.n_users
        return rows[of_user], rows[~of_user] - data.train.n_users

    def _exact(self, script: ScriptModel, data: ScriptData) -> RecommenderModel:
        """Writes the unlearned model and returns it."""
        begin = time.perf_counter()
        forget = Forget(interactions=torch.arange(data.n_kept, len(data.train)))
        result = unlearn(script.old, data.train, forget, objective=self.objective)
        new = result.model
        self._save(script, new)
        script.write(new, with_graph=True)
        change = new.embedding - script.old.embedding
        self.rows = change.any(1).nonzero()[:, 0]
        self.p = (len(data.train) * change[self.rows]).reshape(-1, 1).to(script.device)
        seconds, report = time.perf_counter() - begin, result.report
        print(
            f"unlearned {report.n_forgotten} of {report.n_interactions} rows in {seconds:.3f} s: "
            f"{report.method}, {len(self.rows)} rows of the model, residual {report.residual:.2g}"
        )
        return new

    def _reference(
        self,
        script: ScriptModel,
        model: RecommenderModel,
        data: ScriptData,
        valid: Evaluation,
        test: Evaluation,
    ) -> None:
        """Takes the released steps, on the device of the model."""
        train = data.train.to(script.device)
        rows = _selected(data, self.k_hop, clip=model.graph is not None).to(script.device)
        g = _forget_gradient(model, data)[rows].to(model.dtype)
        # The released Hessian leaves the propagation out.
        plain = MatrixFactorization(model.user_embedding, model.item_embedding)
        mean = Objective("bce", reduction="mean")
        hessian = HessianOperator(plain, train, mean, rows=rows)
        embedding, p = model.embedding.clone(), torch.zeros_like(g)
        gradient, adam = torch.empty_like(g), _Adam(p, self.if_lr)
        start = best = embedding[rows]
        highest, waited = -1.0, 0
        try:
            for step in range(self.if_epoch):
                begin = time.perf_counter()
                adam.step(hessian.matvec_into(p, gradient).sub_(g))
                now = torch.add(start, p, alpha=1 / len(train))
                embedding.index_copy_(0, rows, now)
                seconds = time.perf_counter() - begin
                features = model.propagate(embedding)
                areas, test_areas = valid(features), test(features)
                self.p, last = p.clone(), now
                better = areas.all > highest
                if better:
                    highest, waited, best = areas.all, 0, now
                else:
                    waited += 1
                print(
                    f"step {step}: {seconds:.3f} s, valid AUC {areas}, test AUC {test_areas}"
                    f"{', the best so far' * better}"
                )
                if waited > _PATIENCE:
                    break
        finally:  # also for who has seen enough
            if self.p is not None:
                self.p, self.rows = self.p.reshape(-1, 1), rows.cpu()
                self._save(script, model.with_rows(rows, best))
                script.write(model.with_rows(rows, last), with_graph=False)

    def _save(self, script: ScriptModel, model: RecommenderModel) -> None:
        state = script.state(model)

        def write(file: BinaryIO) -> None:
            torch.save(state, file)

        write_atomic(self.save_name, write)


class _Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1) on one tensor, with its default constants.

    `torch.optim` does the same, and imports for more than a second what compiles optimisers.

    Args:
        x: Changed in place.
        lr: Step length.
    """

    def __init__(self, x: Tensor, lr: float) -> None:
        self._x, self._lr, self._step = x, lr, 0
        self._mean, self._square = torch.zeros_like(x), torch.zeros_like(x)

    def step(self, gradient: Tensor) -> None:
        """One step along a gradient [..] of the shape of x."""
        self._step += 1
        self._mean.lerp_(gradient, 1 - _BETA_1)
        self._square.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
        scale = (self._square / (1 - _BETA_2**self._step)).sqrt_().add_(_EPSILON)
        self._x.addcdiv_(self._mean, scale, value=-self._lr / (1 - _BETA_1**self._step))


def _selected(data: ScriptData, k_hop: int, *, clip: bool) -> Tensor:
    """[rows] int64 node ids, ascending; see `compute_neighbor_influence_clip`.

    Sums are in the order of the released scripts, neighbours ascending: which of two equal scores
    is above the quantile may depend on the last bit.
    """
    train, forgotten = data.train, data.forgotten
    k_hop = as_integer("k_hop", k_hop, 1 if clip else 0)
    degree = 1 + train.degrees().numpy()
    ends = torch.cat([forgotten.user, forgotten.item + train.n_users])
    score = torch.bincount(ends, minlength=train.n_nodes).numpy() / degree
    hops = 1 if clip else k_hop
    if hops:
        # Of parallel rows one passes the score on.
        pair = (train.user * train.n_items + train.item).unique().numpy()
        user, item = pair // train.n_items, pair % train.n_items + train.n_users
        users, items = np.split(np.arange(train.n_nodes), [train.n_users])
        source = np.concatenate([users, item, user, items])
        target = np.concatenate([users, user, item, items])
    for _ in range(hops):
        passed = score[source] / degree[target]
        score = np.bincount(target, passed, minlength=train.n_nodes)
    reached = score > 0
    if clip:
        reached &= score > np.quantile(score[reached], _QUANTILE)
    return torch.from_numpy(np.flatnonzero(reached))


def _forget_gradient(model: RecommenderModel, data: ScriptData) -> Tensor:
    """[N, d] float64: of the summed loss on the forgotten rows, the released rules' g.

    With a graph also of the changed rows, on the old graph minus on the new one; these two are
    much larger than their difference, and so in float64.
    """
    loss, old = Objective("bce"), model.to(torch.float64)
    device = old.embedding.device

    def gradient(at: RecommenderModel, rows: Interactions) -> Tensor:
        return loss.gradient(at, rows.to(device))

    g = gradient(old, data.forgotten)
    if old.graph is not None and data.changed is not None:
        graph = BipartiteGraph.from_interactions(data.kept)
        data.check_changed_graph(graph)
        new = old.with_graph(graph.to(device))
        g += gradient(old, data.changed) - gradient(new, data.changed)
    return g
