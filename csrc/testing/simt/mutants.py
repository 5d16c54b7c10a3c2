"""Whether the emulated tests notice when a CUDA kernel is wrong: mutation analysis.

Every operator, condition, small number and statement of csrc/kernels/cuda/*.cuh is changed, one at
a time, and the tests that include the file run until one fails. The changed sources are one build:
each change is compiled in and woken by a number in the environment (mutants.h). A mutant that
survives must be in mutants.json with the reason why no result could differ. Run by `make mutants`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
KERNELS = Path("csrc/kernels/cuda")
TESTS = Path("csrc/testing/simt")
EXPLAINED = ROOT / TESTS / "mutants.json"

# What is worth running, in this order; the first failure kills. The checking build sees what leaves
# the results right by luck: races, and reads of what was never written.
STAGES = (("simt_fast", "fwd"), ("simt_fast", "rand:1"), ("simt_checked", "fwd"))
# A mutant that takes so many times as long as the tests do, and some seconds, loops forever.
PATIENCE = 5.0
LEAST_SECONDS = 10.0

# Decided at compile time, or no code at all.
_SKIPPED = re.compile(
    r"^\s*(//|#|template\b|using\b|static_assert|struct\b|class\b|namespace\b)"
    r"|\bconstexpr\b|\b__shared__\b|__launch_bounds__|\bthrow\b|std::to_string"
)
_OPERATOR = re.compile(r"(?<=[\w\])]) (<=|>=|==|!=|<<|>>|[-+*/%<>&|])(?= |$)")
_COMPOUND = re.compile(r" ([-+*])= ")
_NUMBER = re.compile(r"(?<![\w.<{])([0-9]+)(?![\w.>}])")
_ARRAY = re.compile(r"^\s*(?!return\b)[\w:]+(?:<[^>]*>)?\*? \w+\[")
_STATEMENT = re.compile(r"^\s+((?:[\w.:\[\]]+ = .*|[\w.:]+(?:<[\w, ]*>)?\(.*\));)$")
_CONDITION = re.compile(r"\b(if|while) \(")
_CHOICE = re.compile(r"(?:(?<=return )|(?<= = )|(?<=\())[\w.]+(?= \? )")
_LOGICAL = re.compile(r" (&&|\|\|) ")


@dataclass(frozen=True)
class Mutant:
    """One change of one line."""

    file: str
    line: int
    text: str
    change: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What mutants.json knows it by: line numbers move."""
        return Path(self.file).name, self.text, self.change


@dataclass(frozen=True)
class Edit:
    """What goes in before column `begin` and before column `end`; @ stands for the number."""

    begin: int
    end: int
    prefix: str
    suffix: str
    change: str


def operand_end(line: str, begin: int, stops: tuple[str, ...] = ()) -> int | None:
    """Where the expression that begins there ends; None where the line ends before it."""
    depth = 0
    for k in range(begin, len(line)):
        if line[k] in "([{":
            depth += 1
        elif line[k] in ")]}":
            depth -= 1
            if depth < 0:
                return k
        elif depth == 0 and (line[k] in ";," or line.startswith(stops, k)):
            return k
    return None


def edits_of(line: str) -> Iterator[Edit]:
    """The changes of one line of code, each on its own."""
    if _SKIPPED.search(line):
        return
    code = line.split("//", maxsplit=1)[0].rstrip()

    def call(function: str, begin: int, end: int, change: str) -> Edit:
        return Edit(begin, end, f"::ifru::mutants::{function}<@>(", ")", change)

    for m in _OPERATOR.finditer(code):
        at = m.start(1)
        yield Edit(at, at, f"{m[1]} ::ifru::mutants::at<@> ", "", f"other {m[1]}")
    for m in _COMPOUND.finditer(code):
        end = operand_end(code, m.end())
        if end is not None:
            function = "increased" if m[1] == "*" else "negated"
            yield call(function, m.end(), end, f"other {m[1]}=")
    for m in () if _ARRAY.match(code) else _NUMBER.finditer(code):
        yield call("increased", *m.span(), f"{m[0]} + 1")
    for m in _CONDITION.finditer(code):
        end = operand_end(code, m.end())
        if end is not None:
            yield call("flipped", m.end(), end, f"not {code[m.end() : end]}")
    for m in _CHOICE.finditer(code):
        yield call("flipped", *m.span(), f"not {m[0]}")
    for m in _LOGICAL.finditer(code):
        end = operand_end(code, m.end(), (" && ", " || ", " ? "))
        if end is not None:
            is_and = m[1] == "&&"
            prefix = (
                "(::ifru::mutants::is<@>() || (" if is_and else "(!::ifru::mutants::is<@>() && ("
            )
            yield Edit(m.end(), end, prefix, "))", f"without {m[1]} {code[m.end() : end]}")
    if whole := _STATEMENT.match(code):
        at = whole.start(1)
        yield Edit(at, at, "if (!::ifru::mutants::is<@>()) ", "", "left out")


class Source:
    """A kernel file and its mutants.

    Attributes:
        name: Relative to the root of the repository.
        tests: Names of the tests that include it.
    """

    def __init__(self, name: str, tests: list[str]) -> None:
        self.name = name
        self.tests = tests
        self._lines = (ROOT / name).read_text().splitlines()
        self._dropped: set[int] = set()

    def drop(self, line: int) -> bool:
        """Leaves a line as it is: changed, it does not compile. False if it was left before."""
        known = line in self._dropped
        self._dropped.add(line)
        return not known

    def mutate(self, first: int) -> tuple[str, list[Mutant]]:
        """The text with all mutants, and these; `first` is the number of the first."""
        out: list[str] = []
        mutants: list[Mutant] = []
        for number, line in enumerate(self._lines, 1):
            edits = [] if number in self._dropped else list(edits_of(line))
            seen: Counter[str] = Counter()
            insertions = []
            for edit in edits:
                k = str(first + len(mutants))
                width = edit.end - edit.begin
                # At one place the wider begins first and ends last.
                insertions.append((edit.begin, 1, -width, edit.prefix.replace("@", k)))
                insertions.append((edit.end, 0 if width else 1, width, edit.suffix))
                seen[edit.change] += 1
                again = f" (no. {seen[edit.change]})" if seen[edit.change] > 1 else ""
                mutants.append(Mutant(self.name, number, line.strip(), edit.change + again))
            changed = line
            for column, _, _, text in sorted(insertions, reverse=True):
                changed = changed[:column] + text + changed[column:]
            out.append(changed)
        text = "\n".join(out) + "\n"
        header = '#include "../../testing/simt/mutants.h"'
        return text.replace("#pragma once\n", f"#pragma once\n{header}\n", 1), mutants


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command and keeps what it prints."""
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False
    )


def find_sources(files: list[str]) -> list[Source]:
    """The kernel files with their tests, as the compiler's own list of includes has them."""
    tests: dict[str, list[str]] = {}
    for test in sorted((ROOT / TESTS).glob("test_*.cpp")):
        if test.stem in ("test_main", "test_emulation"):
            continue
        done = run("g++", "-std=c++17", "-MM", "-I", ROOT / TESTS, test)
        if done.returncode:
            raise SystemExit(f"mutants: {test.name}: {done.stderr}")
        for path in done.stdout.replace("\\\n", " ").split()[1:]:
            header = Path(path).resolve()
            if header.parent == ROOT / KERNELS:
                tests.setdefault(header.name, []).append(test.stem.removeprefix("test_"))
    unknown = set(files) - tests.keys()
    if unknown:
        raise SystemExit(f"mutants: expected some of {sorted(tests)}, got {sorted(unknown)}")
    return [Source(str(KERNELS / name), tests[name]) for name in sorted(files or tests)]


def build(folder: Path, sources: list[Source]) -> dict[int, tuple[Mutant, Source]]:
    """Compiles all mutants into two programs; gives them by number.

    A line whose changes do not compile, since it wants a constant, is left as it is.
    """
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    shutil.copy(ROOT / "CMakeLists.txt", tree)
    flags = "-O1 -w -DIFRU_STOP_AT_FAILURE -fmax-errors=0"
    configured = run(
        *("cmake", "-S", tree, "-B", folder / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None"),
        *("-DIFRU_PYTHON=OFF", "-DIFRU_SIMT=ON", f"-DCMAKE_CXX_FLAGS={flags}"),
    )
    if configured.returncode:
        raise SystemExit(f"mutants: {configured.stdout}{configured.stderr}")
    while True:
        numbered: dict[int, tuple[Mutant, Source]] = {}
        for source in sources:
            text, mutants = source.mutate(len(numbered))
            (tree / source.name).write_text(text)
            numbered |= {len(numbered) + k: (m, source) for k, m in enumerate(mutants)}
        # The fast build first: an error costs least there.
        for target in ("simt_fast", "simt_checked"):
            done = run("cmake", "--build", folder / "build", "--target", target, "--", "-k", "0")
            if done.returncode:
                break
        else:
            return numbered
        found = False
        for source in sources:
            # The line of the text is the line of the source, but for the one that was put in.
            pattern = rf"{re.escape(Path(source.name).name)}:(\d+):\d+: (?:error|  required)"
            for line in re.findall(pattern, done.stdout):
                found |= source.drop(int(line) - 1)
        if not found:
            raise SystemExit(f"mutants: the changed sources do not compile:\n{done.stdout[-4000:]}")


class Runner:
    """Runs the tests of a source on its mutants.

    Args:
        folder: Of the build.
        source: The file.

    Raises:
        SystemExit: The tests fail without any mutant alive.
    """

    def __init__(self, folder: Path, source: Source) -> None:
        self._programs = folder / "build" / TESTS
        self._tests = source.tests
        self._limits: dict[tuple[str, str], float | None] = dict.fromkeys(STAGES)
        for stage in STAGES:
            begin = time.monotonic()
            if self._fails(stage, -1) is not None:
                raise SystemExit(f"mutants: {source.name}: its tests fail with no mutant alive")
            self._limits[stage] = LEAST_SECONDS + PATIENCE * (time.monotonic() - begin)

    def outcome(self, number: int) -> str | None:
        """What killed a mutant; None if it survived."""
        return next((how for s in STAGES if (how := self._fails(s, number)) is not None), None)

    def _fails(self, stage: tuple[str, str], number: int) -> str | None:
        program, schedule = stage
        try:
            done = subprocess.run(
                [str(self._programs / program), schedule, *self._tests],
                env={**os.environ, "IFRU_MUTANT": str(number)},
                capture_output=True,
                timeout=self._limits[stage],
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "no end"
        return f"{program} {schedule}" if done.returncode else None


def read_reasons() -> dict[tuple[str, str, str], str]:
    """Why each known survivor changes no result: file, line, change -> reason."""
    nested = json.loads(EXPLAINED.read_text())
    return {
        (file, text, change): reason
        for file, lines in nested.items()
        for text, changes in lines.items()
        for change, reason in changes.items()
    }


def main() -> int:
    """Builds, runs and lists; fails on a survivor without a reason, or a reason without one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="*", help="names like vector.cuh; all by default")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mutants")
    arguments = parser.parse_args()
    begin = time.monotonic()
    sources = find_sources(arguments.files)
    mutants = build(arguments.folder, sources)
    runners = {source: Runner(arguments.folder, source) for source in sources}
    print(f"{len(mutants)} mutants, built in {time.monotonic() - begin:.0f} s", flush=True)

    def settle(number: int) -> str | None:
        return runners[mutants[number][1]].outcome(number)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        outcomes = dict(zip(mutants, pool.map(settle, mutants), strict=True))
    killed = Counter(how for how in outcomes.values() if how is not None)
    print(f"killed by {dict(killed)}, {time.monotonic() - begin:.0f} s in all")

    reasons = read_reasons()
    survivors = [mutants[number][0] for number, how in outcomes.items() if how is None]
    unexplained = 0
    for mutant in survivors:
        reason = reasons.pop(mutant.key, None)
        unexplained += reason is None
        print(f"{mutant.file}:{mutant.line}: {mutant.text}\n    {mutant.change}: ", end="")
        print(reason or f"SURVIVED, not in {EXPLAINED.name}")
    names = {Path(source.name).name for source in sources}
    stale = [key for key in reasons if key[0] in names]
    for file, text, change in stale:
        print(f"{file}: {text}\n    {change}: in {EXPLAINED.name}, but killed or gone")
    equivalent = len(survivors) - unexplained
    print(f"{killed.total()} killed, {equivalent} equivalent, {unexplained} unexplained")
    return 1 if unexplained or stale else 0


if __name__ == "__main__":
    sys.exit(main())
