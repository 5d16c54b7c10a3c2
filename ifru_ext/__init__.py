"""Removes training data from a trained recommender as if it had been retrained without it.

The public names are below; `ifru_ext.ops` has the compiled ops, also as `torch.ops.ifru_ext`.
Importing the package loads the compiled libraries, compiles nothing and touches no GPU.
"""

from ifru_ext import profiling
from ifru_ext._native import native
from ifru_ext.anchored import Anchor
from ifru_ext.forget import Forget
from ifru_ext.graph import BipartiteGraph
from ifru_ext.ids import IdMap
from ifru_ext.influence import influence
from ifru_ext.interactions import Interactions
from ifru_ext.io.reading import read_interactions
from ifru_ext.io.store import load_model, save_model
from ifru_ext.lanczos import LanczosResult, lanczos_apply, spectral_filter
from ifru_ext.models import BiasedMatrixFactorization, LightGCN, MatrixFactorization
from ifru_ext.objective import Objective
from ifru_ext.operators import GaussNewtonOperator, HessianOperator
from ifru_ext.planning import Plan, plan
from ifru_ext.preconditioners import (
    BlockJacobiPreconditioner,
    JacobiPreconditioner,
    NystromPreconditioner,
    row_jacobi,
)
from ifru_ext.pruning import Pruning
from ifru_ext.solvers import SolveReason, SolveResult, cg, cg_batch, minres, steihaug
from ifru_ext.train import polish, train
from ifru_ext.unlearning import UnlearnReport, UnlearnResult, unlearn
from ifru_ext.verify import VerifyReport, verify

__version__ = native.build["version"]

__all__ = [
    "Anchor",
    "BiasedMatrixFactorization",
    "BipartiteGraph",
    "BlockJacobiPreconditioner",
    "Forget",
    "GaussNewtonOperator",
    "HessianOperator",
    "IdMap",
    "Interactions",
    "JacobiPreconditioner",
    "LanczosResult",
    "LightGCN",
    "MatrixFactorization",
    "NystromPreconditioner",
    "Objective",
    "Plan",
    "Pruning",
    "SolveReason",
    "SolveResult",
    "UnlearnReport",
    "UnlearnResult",
    "VerifyReport",
    "cg",
    "cg_batch",
    "influence",
    "lanczos_apply",
    "load_model",
    "minres",
    "native",
    "plan",
    "polish",
    "profiling",
    "read_interactions",
    "row_jacobi",
    "save_model",
    "spectral_filter",
    "steihaug",
    "train",
    "unlearn",
    "verify",
]
