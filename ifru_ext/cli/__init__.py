"""The command line: one module for each group of commands, and `app`, which they share.

Exit codes: 0 done (also where there was nothing to do), 1 not converged to what was asked, or not
as the retrained models, 2 bad input, 3 interrupted, 70 a defect of the program.
"""

from ifru_ext.cli import (
    benching,
    demonstration,
    evidence,
    history,
    mapping,
    profiling,
    requests,
    training,
)
from ifru_ext.cli.app import run

__all__ = ["run"]

# In the order of the help; importing the modules alone defines nothing on the application.
for module in (
    training,
    requests,
    evidence,
    history,
    mapping,
    demonstration,
    benching,
    profiling,
):
    module.register()
