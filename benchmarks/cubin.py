"""What nvcc makes of the CUDA kernels, against csrc/kernels/cuda/budget.json; needs no GPU.

Compiles csrc/ops/*_cuda.cu for each architecture, with spills and local memory as errors, and reads
registers, shared memory, 128-bit loads and occupancy off the machine code. `--write` renews the
budget. Run by `make cubin`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGET = ROOT / "csrc" / "kernels" / "cuda" / "budget.json"
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
STRICT = ["-Xptxas", "--warn-on-spills,--warn-on-local-memory-usage,-Werror"]


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one streaming multiprocessor: CUDA programming guide, compute capabilities."""

    warps: int
    blocks: int
    shared_kib: int
    optional: bool = False  # left out where nvcc does not know it

    def occupancy(self, block: int, registers: int, shared: int) -> float:
        """The share of the warps that can be resident at once."""
        warps_per_block = -(-block // 32)
        registers_per_warp = max(8, -(-registers // 8) * 8) * 32
        by_registers = 16384 // registers_per_warp * 4 // warps_per_block  # in four partitions
        by_shared = self.shared_kib * 1024 // (-(-shared // 128) * 128 + 1024)
        blocks = min(self.blocks, self.warps // warps_per_block, by_registers, by_shared)
        return blocks * warps_per_block / self.warps


ARCHITECTURES = {
    "sm_80": Multiprocessor(warps=64, blocks=32, shared_kib=164),
    "sm_90": Multiprocessor(warps=64, blocks=32, shared_kib=228),
    "sm_100": Multiprocessor(warps=64, blocks=32, shared_kib=228),
    "sm_120": Multiprocessor(warps=48, blocks=24, shared_kib=100, optional=True),
}


@dataclass(frozen=True)
class Usage:
    """One kernel's use of the machine; of several architectures, the worst."""

    block: int  # threads, from __launch_bounds__
    registers: int  # allocated per thread, in steps of 8
    shared: int  # bytes, static
    loads128: int
    occupancy: float

    def worst(self, other: Usage) -> Usage:
        return Usage(
            max(self.block, other.block),
            max(self.registers, other.registers),
            max(self.shared, other.shared),
            min(self.loads128, other.loads128),
            min(self.occupancy, other.occupancy),
        )

    def over(self, budget: Usage) -> list[str]:
        """In what it exceeds the budget."""
        worse = {
            "block": self.block != budget.block,
            "registers": self.registers > budget.registers,
            "shared": self.shared > budget.shared,
            "loads128": self.loads128 < budget.loads128,
            "occupancy": self.occupancy < budget.occupancy,
        }
        return [
            f"{name}: expected {getattr(budget, name)}, got {getattr(self, name)}"
            for name, is_worse in worse.items()
            if is_worse
        ]


class CubinError(Exception):
    """A missing tool, or a source that does not compile: the message says it all."""


def run(*command: str | Path) -> str:
    """The output of a command."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CubinError(f"{Path(command[0]).name} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def find_tool(name: str, nvcc: Path) -> Path:
    """A CUDA tool: in nvcc's own folder, of the PyPI package, or on PATH."""
    toolkit = re.search(r"^#\$ _HERE_=(.*)$", dry_run(nvcc), re.M)
    folders = [Path(toolkit[1])] if toolkit else []
    packages = importlib.util.find_spec("nvidia")
    for package in (packages and packages.submodule_search_locations) or ():
        folders += Path(package).glob("*/bin")
    folders += [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise CubinError(f"{name} was not found: `pip install nvidia-cuda-{name}`")


def dry_run(nvcc: Path) -> str:
    """What nvcc would run, among it where it lives: the one on PATH may be a wrapper."""
    done = subprocess.run(
        [str(nvcc), "--dryrun", "-x", "cu", "-c", os.devnull],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr


def compile_all(nvcc: Path, folder: Path, names: list[str]) -> None:
    """Every source for every architecture, and to PTX."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        raise CubinError("torch was not found: its headers are needed")
    include = ["-isystem", str(Path(torch.origin).parent / "include")]

    def compile_one(job: tuple[Path, str]) -> None:
        source, name = job
        kind = "-ptx" if name.startswith("compute_") else "-cubin"
        out = folder / f"{source.stem}.{name}.{kind[1:]}"
        run(nvcc, *FLAGS, *include, *STRICT, f"-arch={name}", kind, source, "-o", out)

    jobs = [
        (source, name)
        for name in names
        for source in sorted((ROOT / "csrc" / "ops").glob("*_cuda.cu"))
    ]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(compile_one, jobs))


def short(mangled: str) -> str:
    """`propagate_rows<float, int>` of a mangled kernel's name."""
    text = run("c++filt", mangled).strip().removeprefix("void ")
    depth, end = 0, len(text)
    for k, c in enumerate(text):  # the parameter list begins at the first parenthesis outside <>
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            end = k
            break
    return text[:end].replace("ifru::cuda::", "").replace("ifru::", "").replace(" >", ">")


def blocks_of(ptx: str) -> Iterator[tuple[str, int]]:
    """The name and the launch bound of each kernel in a PTX text."""
    for name, rest in re.findall(r"\.entry (\w+)\(([^{]*)\{", ptx):
        bound = re.search(r"\.maxntid (\d+)", rest)
        if bound is None:
            raise CubinError(f"{short(name)}: expected __launch_bounds__, found none")
        yield name, int(bound[1])


def usage_of(
    tool: Path, cubin: Path, machine: Multiprocessor, blocks: dict[str, int]
) -> Iterator[tuple[str, Usage]]:
    """The name and the usage of each kernel in a cubin."""
    sass = run(tool, "-sass", cubin)
    loads = {
        name: len(re.findall(r"\bLDG\.E\S*\.128\b", body))
        for name, body in re.findall(r"Function : (\w+)\n(.*?)(?=Function :|\Z)", sass, re.S)
    }
    resources = re.findall(
        r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
        run(tool, "-res-usage", cubin),
    )
    for name, registers, stack, shared, local in resources:
        if int(stack) or int(local):
            raise CubinError(
                f"{short(name)}: expected no local memory, got {stack} + {local} bytes"
            )
        allocated = -(-int(registers) // 8) * 8
        occupancy = machine.occupancy(blocks[name], allocated, int(shared))
        yield (
            name,
            Usage(blocks[name], allocated, int(shared), loads[name], round(occupancy, 3)),
        )


def measure(nvcc: Path, folder: Path) -> dict[str, Usage]:
    """The worst usage of each kernel over the architectures."""
    known = run(nvcc, "--list-gpu-code").split()
    names = [name for name, m in ARCHITECTURES.items() if name in known or not m.optional]
    print(f"{', '.join(names)} and PTX by {run(nvcc, '--version').split()[-1]}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tool = find_tool("cuobjdump", nvcc)
    disassembler = find_tool("nvdisasm", nvcc)  # cuobjdump calls it by name
    os.environ["PATH"] = f"{disassembler.parent}{os.pathsep}{os.environ['PATH']}"
    compile_all(nvcc, folder, [*names, "compute_90"])
    blocks = {
        name: block
        for ptx in sorted(folder.glob("*.ptx"))
        for name, block in blocks_of(ptx.read_text())
    }
    kernels: dict[str, Usage] = {}
    for arch in names:
        for cubin in sorted(folder.glob(f"*.{arch}.cubin")):
            for name, usage in usage_of(tool, cubin, ARCHITECTURES[arch], blocks):
                kernels[name] = usage.worst(kernels[name]) if name in kernels else usage
    return dict(sorted((short(name), usage) for name, usage in kernels.items()))


def compare(kernels: dict[str, Usage], budget: dict[str, Usage]) -> list[str]:
    """One line for each kernel that is over its budget, without one, or gone."""
    findings = [f"{name}: no such kernel" for name in budget.keys() - kernels.keys()]
    for name, usage in kernels.items():
        if name not in budget:
            findings.append(f"{name}: not in {BUDGET.name}")
        else:
            findings += [f"{name}: {text}" for text in usage.over(budget[name])]
    return sorted(findings)


def main() -> int:
    """Measures, prints the table, and compares or writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="renew the budget")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "cubin")
    arguments = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("cubin: expected nvcc on PATH, found none", file=sys.stderr)
        return 2
    try:
        kernels = measure(Path(nvcc), arguments.folder)
    except CubinError as error:
        print(f"cubin: {error}", file=sys.stderr)
        return 1
    width = max(map(len, kernels))
    print(f"{'kernel':{width}}  block  registers  shared  LDG.128  occupancy")
    for name, u in kernels.items():
        print(
            f"{name:{width}}  {u.block:5}  {u.registers:9}  {u.shared:6}  {u.loads128:7}"
            f"  {u.occupancy:9.0%}"
        )
    if arguments.write:
        lines = [
            f"  {json.dumps(name)}: {json.dumps(asdict(usage))}" for name, usage in kernels.items()
        ]
        BUDGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return 0
    budget = {name: Usage(**row) for name, row in json.loads(BUDGET.read_text()).items()}
    findings = compare(kernels, budget)
    print("\n".join(findings) or f"{len(kernels)} kernels within {BUDGET.relative_to(ROOT)}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
