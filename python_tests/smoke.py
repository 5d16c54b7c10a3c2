"""Run by `make package` in a fresh environment with nothing but the wheel: imports and computes."""

import subprocess
import sys
from importlib import resources

import torch

import ifru_ext
from ifru_ext import Forget, Interactions, Objective, train, unlearn

generator = torch.Generator().manual_seed(0)
data = Interactions(
    torch.randint(0, 30, (400,), generator=generator),
    torch.randint(0, 20, (400,), generator=generator),
    torch.randint(0, 2, (400,), generator=generator),
)
objective = Objective(loss="bce", l2=0.5)
trained = train(data, objective, dim=8, epochs=5, polish_rtol=1e-3)
result = unlearn(trained.model, data, Forget(users=[3]), objective=objective)
assert result.report.n_forgotten > 0
assert result.report.residual < 1
assert torch.equal(result.undo().embedding, trained.model.embedding)

assert (resources.files("ifru_ext.report") / "templates/report.html.j2").is_file()

# Without the extra, the command says what to install instead of showing a traceback.
answer = subprocess.run(
    [sys.executable, "-m", "ifru_ext", "info"], capture_output=True, text=True, check=False
)
assert answer.returncode == 2, answer
assert 'pip install "ifru-ext[cli]"' in answer.stderr, answer.stderr
assert "Traceback" not in answer.stderr

print(f"ifru-ext {ifru_ext.__version__}: residual {result.report.residual:.3f}; 1 passed, 0 failed")
