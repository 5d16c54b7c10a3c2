"""`ifru profile`: where the time of a request goes, and single calls of ops for kernel work."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from typer.core import TyperGroup

from ifru_ext import ops
from ifru_ext.bench.timing import bandwidth, clock_of, n_cores, thread_section
from ifru_ext.cli.app import (
    NOT_CONVERGED,
    DataArgument,
    ItemColumn,
    JsonFlag,
    LabelColumn,
    QuietFlag,
    StoreArgument,
    Threshold,
    UserColumn,
    Voice,
    WaitOption,
    app,
    check_output,
    opened,
    out,
)
from ifru_ext.cli.requests import (
    BeforeOption,
    EraseOption,
    HopsOption,
    IgnoreUnknown,
    ItemsOption,
    KeepOption,
    MethodOption,
    RequestOption,
    RtolOption,
    UsersOption,
    unlearn_command,
)
from ifru_ext.device import as_device
from ifru_ext.errors import InputError, as_integer
from ifru_ext.io.versions import CHECKPOINT, ModelStore
from ifru_ext.profiling import USUAL_DIM, profile
from ifru_ext.replay import Replay, capture, load_call, replay
from ifru_ext.report.text import number, share
from ifru_ext.traffic import access_of

__all__ = ["register"]

ThreadsOption = Annotated[
    int | None, typer.Option("--threads", help="Threads of torch; by default as many as it takes.")
]
RooflineFlag = Annotated[
    bool,
    typer.Option(
        "--roofline/--no-roofline",
        help="Measure, afterwards, the memory's bandwidth; about a second and half a gigabyte.",
    ),
]


class _Group(TyperGroup):
    """A group with a command that need not be named."""

    default = "request"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [self.default, *args]
        return list(super().parse_args(ctx, args))


commands = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    help="""Shows where the time of a request goes, by phase and by op.

    The request is made as by `ifru unlearn`, on a copy of the store that is removed afterwards:
    the store stays as it is. `request` need not be written.

    Example: ifru profile model ratings.csv --users 17,42

    Example: ifru profile model ratings.csv --users 17 --html profile.html --trace trace.json

    Example: ifru profile model ratings.csv --users 17 --capture propagate:3 --to call.safetensors

    Example: ifru profile replay call.safetensors --threads 1
    """,
)


def register() -> None:
    """Adds the commands."""
    commands.command("request")(request_command)
    commands.command("replay")(replay_command)
    app.add_typer(commands, name="profile")


def request_command(
    model: StoreArgument,
    data: DataArgument,
    request: RequestOption = None,
    users: UsersOption = None,
    items: ItemsOption = None,
    before: BeforeOption = None,
    ignore_unknown: IgnoreUnknown = False,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    label_column: LabelColumn = None,
    threshold: Threshold = None,
    method: MethodOption = "auto",
    rtol: RtolOption = None,
    hops: HopsOption = None,
    keep: KeepOption = 1.0,
    erase: EraseOption = "zero",
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace", help="File for the trace, for ui.perfetto.dev or chrome://tracing."
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="File for the picture, one page without a script.")
    ] = None,
    captured: Annotated[
        str | None,
        typer.Option(
            "--capture",
            metavar="OP[:K]",
            help="Instead of a profile, keep the arguments of the K-th call of an op (1 by "
            "default), as pointwise_hvp:3.",
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="File for the captured call, .safetensors.")
    ] = None,
    threads: ThreadsOption = None,
    roofline: RooflineFlag = True,
    wait: WaitOption = 0.0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Profiles a request, which is made on a copy of the store; takes the options of `unlearn`.

    Example: ifru profile model ratings.csv --users 17,42 --html profile.html

    Example: ifru profile model ratings.csv --items 8 --capture propagate --to call.safetensors
    """
    voice = Voice(as_json, quiet)
    if (captured is None) != (to is None):
        raise InputError("--capture, --to: expected both or none, got one")
    if captured is not None and (trace is not None or html is not None):
        raise InputError("--capture: expected no --trace and no --html, which it would distort")
    for option, path in (("--trace", trace), ("--html", html), ("--to", to)):
        check_output(option, path, data, request)
    if trace is not None and html is not None and trace.resolve() == html.resolve():
        raise InputError(f"--trace, --html: expected two files, got {html} for both")
    _set_threads(threads)

    def run(store: Path) -> None:
        unlearn_command(
            *(store, data, request, users, items, before, ignore_unknown),
            user_column=user_column,
            item_column=item_column,
            label_column=label_column,
            threshold=threshold,
            method=method,
            rtol=rtol,
            hops=hops,
            keep=keep,
            erase=erase,
            quiet=True,
        )

    with tempfile.TemporaryDirectory(prefix="ifru-profile-") as folder:
        copy = Path(folder, "store")
        with opened(model, wait=wait) as store:
            # Without the state of an interrupted request, whose work would not be seen again.
            ignored = shutil.ignore_patterns(CHECKPOINT)
            shutil.copytree(store.folder, copy, symlinks=True, ignore=ignored)
        if captured is not None and to is not None:
            name, call_number = _parsed(captured)
            with capture(name, call_number) as call:
                _made(voice, copy, run)
            call.save(to)
            voice.json({"op": name, "number": call_number, "file": str(to)})
            voice.say(f"Kept call {call_number} of {name}; to make it again:")
            voice.say(f"ifru profile replay {to}", whole=True)
            return
        with profile(roofline=roofline) as found:
            changed = _made(voice, copy, run)
    if not changed:
        voice.note("nothing was to be done: ifru plan says why; what follows is no more than that")
    if trace is not None:
        found.export_trace(trace)
    if html is not None:
        found.export_html(html, title=f"Request on {model.resolve().name}")
    if as_json:
        voice.json(found.to_json())
    elif not quiet:
        out.print(found.table(), markup=False, soft_wrap=True)


def replay_command(
    file: Annotated[Path, typer.Argument(help="A call, as `ifru profile --capture` kept it.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: ThreadsOption = None,
    repeats: Annotated[int, typer.Option(help="Calls at least; more until a second is over.")] = 9,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Compare with the op's twin in float64, which may take much memory.",
        ),
    ] = True,
    roofline: RooflineFlag = True,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Makes a captured call again, many times: time, bandwidth, error, and whether the same bits.

    With one thread, it is pinned to a core.

    Example: ifru profile replay call.safetensors --threads 1
    """
    voice = Voice(as_json, quiet)
    place = as_device("--device", device)
    call = load_call(file)
    count = torch.get_num_threads() if threads is None else _checked_threads(threads)
    with thread_section(count):
        found = replay(call, device=place, repeats=repeats, check=check)
        memory = bandwidth(found.dim or USUAL_DIM, place, clock_of(place)) if roofline else None
    roof = None if memory is None else memory[f"{access_of(f'::{call.op}').value}_gb_s"]
    part = None if roof is None or found.gb_s is None else found.gb_s / roof
    voice.json({**found.to_json(), "bandwidth": memory, "roofline_share": part})
    if not (as_json or quiet):
        _say_replay(voice, found, roof, part)


def _say_replay(voice: Voice, found: Replay, roof: float | None, part: float | None) -> None:
    t = found.timing
    sizes = ", ".join(f"{name} {shape}" for name, shape in found.sizes.items())
    voice.say(f"{found.op}, call {found.number}: {sizes}")
    voice.say(
        f"{t['median_ms']:.4g} ms ({t['q1_ms']:.4g} to {t['q3_ms']:.4g}, {t['calls']} calls, "
        f"{found.environment['threads']} threads, {found.environment['isa']})"
    )
    if found.gb_s is not None:
        of_roof = "" if roof is None else f", {share(part)} of the measured {roof:.1f} GB/s"
        voice.say(f"{number(found.n_bytes)} bytes: {found.gb_s:.1f} GB/s{of_roof}")
    if found.relative_error is not None:
        voice.say(f"Error against the twin in float64: {found.relative_error:.1e}")
    was = found.captured
    voice.say(
        ("Same bits as captured" if found.same_bits else "Other bits than captured")
        + f" ({was['threads']} threads, {was['isa']}); "
        + ("the same each time" if found.deterministic else "others in a later call")
    )


def _made(voice: Voice, store: Path, run: Callable[[Path], None]) -> bool:
    """Makes the request; returns whether it made a version."""
    before = _version(store)
    try:
        run(store)
    except typer.Exit as ended:
        if ended.exit_code != NOT_CONVERGED or _version(store) == before:
            raise
        voice.note("the request did not converge to what was asked")
    return _version(store) != before


def _version(folder: Path) -> str:
    with ModelStore.open(folder) as store:
        return store.current


def _parsed(text: str) -> tuple[str, int]:
    """An op's name and the number of its call."""
    name, _, k = text.partition(":")
    if name not in ops.__all__:
        raise InputError(f"--capture: expected one of {', '.join(ops.__all__)}, got {name!r}")
    try:
        return name, as_integer("--capture", int(k or 1), 1)
    except ValueError:
        raise InputError(f"--capture: expected OP or OP:K with K from 1, got {text!r}") from None


def _checked_threads(threads: int) -> int:
    if not 1 <= threads <= n_cores():
        raise InputError(f"--threads: expected 1 to {n_cores()}, the cores here, got {threads}")
    return threads


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(_checked_threads(threads))
