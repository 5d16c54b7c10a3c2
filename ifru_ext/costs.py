"""What the ops move and compute, counted from sizes, and how long a machine's memory takes for it.

Byte counts are the traffic of the algorithm: every gathered row counts in full, caches are not
credited, and a read-modify-write counts twice. Notation: N nodes, E interactions, d features, R
rows of the side that streams by, M of the other one (R + M = N); a number takes 4 bytes in float32.

The ops do at most two floating-point operations per byte: it is the memory that bounds them, and
seconds are those of the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "H100",
    "VECTORS",
    "Machine",
    "Sizes",
    "Traffic",
    "conjugate_gradients",
    "derivatives",
    "gradient",
    "graph_build",
    "held",
    "item_exchange",
    "lanczos",
    "large_request",
    "product",
    "propagation",
    "restricted_evaluation",
    "restricted_product",
    "small_request",
]

_CACHE_LINE = 64
_BUCKET = 1 << 16  # entries that are sorted at once: csrc/host/grouping.h
# How many vectors an op reads and writes: <p, Ap> two and none, the update of conjugate gradients
# four and two, their direction two and one.
VECTORS = {"dot": 2, "cg_update": 6, "cg_direction": 3}


@dataclass(frozen=True)
class Sizes:
    """What a count is made from.

    Attributes:
        n_users: Number of users.
        n_items: Number of items.
        n_interactions: E.
        dim: d.
        number: Bytes of a number that is computed with: 4, or 8 for float64.
        feature: Bytes of a feature as it is stored; 2 in 16 bits.
        index: Bytes of an id: 4 where N and E are below 2^31, else 8.
        gathers: Whether each row gathers its own entries, as on a GPU; else an interaction is
            visited once, in one pass (csrc/README.md, "Stream" and "Entries").
    """

    n_users: int
    n_items: int
    n_interactions: int
    dim: int
    number: int = 4
    feature: int = 4
    index: int = 4
    gathers: bool = False

    @property
    def n_nodes(self) -> int:
        """N."""
        return self.n_users + self.n_items

    @property
    def streamed_rows(self) -> int:
        """R."""
        return max(self.n_users, self.n_items)

    @property
    def other_rows(self) -> int:
        """M."""
        return min(self.n_users, self.n_items)

    @property
    def row(self) -> int:
        """Bytes of a row of numbers."""
        return self.number * self.dim

    @property
    def feature_row(self) -> int:
        """Bytes of a row of features as they are stored."""
        return self.feature * self.dim


@dataclass(frozen=True)
class Traffic:
    """What one call, or a few of them, moves and computes.

    Attributes:
        gathered: Bytes of rows that are read or written where ids lead to.
        streamed: All other bytes, one after the other.
        table: Bytes of the distinct rows that are gathered.
        flops: Additions and multiplications.
        calls: Calls of ops.
    """

    gathered: int = 0
    streamed: int = 0
    table: int = 0
    flops: int = 0
    calls: int = 1

    @property
    def n_bytes(self) -> int:
        """Gathered and streamed."""
        return self.gathered + self.streamed

    def __rmul__(self, n: int) -> Traffic:
        return Traffic(
            n * self.gathered, n * self.streamed, self.table, n * self.flops, n * self.calls
        )


@dataclass(frozen=True)
class Machine:
    """What bounds a call; bandwidths in bytes per second.

    Attributes:
        name: For a report.
        copy: From one array to another, reads and writes counted.
        gather: Of random rows out of a table larger than the caches.
        cached: The same out of a table that a cache holds.
        cache: Bytes of the largest cache.
        call: Seconds of a call that computes nothing.
        memory: Bytes there are.
        link: To other machines of its kind, in one direction; 0 for none.
    """

    name: str
    copy: float
    gather: float
    cached: float
    cache: int
    call: float
    memory: int
    link: float = 0.0

    def seconds(self, *traffic: Traffic) -> float:
        """Of calls one after the other.

        As much of a table as the cache holds is gathered from there: whose rows are asked for
        evenly. Popular rows stay, so that measured times may be below.
        """
        total = 0.0
        for t in traffic:
            inside = min(1.0, self.cache / t.table) if t.table else 0.0
            gathered = t.gathered * (inside / self.cached + (1 - inside) / self.gather)
            total += gathered + t.streamed / self.copy + t.calls * self.call
        return total


# NVIDIA H100 SXM5, by its data sheet: 80 GB of HBM3 at 3.35 TB/s, 50 MB of L2, NVLink 450 GB/s in
# each direction. Of the memory's peak 3.0 TB/s are taken (benchmarks/gpu.md), from L2 no more: what
# a GPU's kernels reach has not been measured. A launch takes 5 microseconds.
H100 = Machine("H100 80GB", 3.0e12, 3.0e12, 3.0e12, 50_000_000, 5e-6, 80_000_000_000, 450e9)


def product(s: Sizes, *, exact: bool = True) -> Traffic:
    """The Hessian-vector product, or the Gauss-Newton product, without a propagation; equation (6).

    In one pass an interaction gathers f_m and z_m, reads and writes out_m, and reads its column and
    values. A streamed row reads f_n, z_n and writes out_n and reads its pointer; a row of the other
    side is set to zero once. Gathering, an entry, two for each interaction, gathers f_m and z_m and
    reads its neighbour and values; a node reads f_n, z_n and its pointer and writes out_n.
    """
    values = (2 if exact else 1) * s.number
    # Of an interaction two inner products, and what it adds to each of its ends.
    added = (4 if exact else 2) * s.dim
    per_row = 2 * s.feature_row + s.row + 8
    if s.gathers:
        entries = 2 * s.n_interactions
        streamed = entries * (s.index + values) + s.n_nodes * per_row
        table = 2 * s.n_nodes * s.feature_row
        flops = entries * (4 * s.dim + added)
        return Traffic(entries * 2 * s.feature_row, streamed, table, flops)
    streamed = s.n_interactions * (s.index + values) + s.streamed_rows * per_row
    streamed += s.other_rows * s.row
    per_interaction = 2 * s.feature_row + 2 * s.row
    table = s.other_rows * (2 * s.feature_row + s.row)
    flops = s.n_interactions * (4 * s.dim + 2 * added)
    return Traffic(s.n_interactions * per_interaction, streamed, table, flops)


def gradient(s: Sizes) -> Traffic:
    """The gradient with respect to the features; equation (5).

    As a product with one gathered row and one value.
    """
    flops = 4 * s.dim * s.n_interactions
    per_row = s.feature_row + s.row + 8
    if s.gathers:
        entries = 2 * s.n_interactions
        streamed = entries * (s.index + s.number) + s.n_nodes * per_row
        return Traffic(entries * s.feature_row, streamed, s.n_nodes * s.feature_row, flops)
    streamed = s.n_interactions * (s.index + s.number) + s.streamed_rows * per_row
    streamed += s.other_rows * s.row
    gathered = s.n_interactions * (s.feature_row + 2 * s.row)
    return Traffic(gathered, streamed, s.other_rows * (s.feature_row + s.row), flops)


def derivatives(s: Sizes, *, n_ends: int = 2, labelled: bool = True) -> Traffic:
    """Loss, r and w of each interaction; equation (2).

    It gathers the rows of its ends, two or a triple's three, reads their ids and the label, and
    writes three numbers. In stream order one of the rows is the last one again.
    """
    numbers = 4 if labelled else 3
    streamed = s.n_interactions * (n_ends * s.index + numbers * s.number)
    if s.gathers:
        gathered, table = n_ends * s.n_interactions * s.feature_row, s.n_nodes * s.feature_row
    else:
        gathered = (n_ends - 1) * s.n_interactions * s.feature_row
        table = s.other_rows * s.feature_row
        streamed += s.streamed_rows * s.feature_row
    return Traffic(gathered, streamed, table, (n_ends - 1) * 2 * s.dim * s.n_interactions)


def propagation(s: Sizes, n_layers: int, *, stream: bool = False) -> Traffic:
    """sum_k alpha_k A_hat^k x by Horner; equation (1).

    Gathering, an entry gathers a row and reads its index; a node reads x, its scale and pointer,
    and writes its row. In one pass over the edges an edge gathers a row, reads and writes another,
    and reads its column; a streamed row reads its own, x, scale and pointer and writes its result;
    a row of the other side is set to zero, then read, combined with x and written. Once per layer,
    and once more x times scale before the first.
    """
    first = s.n_nodes * 2 * s.row
    flops = n_layers * (4 * s.n_interactions + 3 * s.n_nodes) * s.dim
    if not stream:
        entries = 2 * s.n_interactions
        streamed = entries * s.index + s.n_nodes * (2 * s.row + 12)
        gathered, table = entries * s.row, s.n_nodes * s.row
    else:
        streamed = s.n_interactions * s.index + s.streamed_rows * (3 * s.row + 12)
        streamed += s.other_rows * (4 * s.row + 4)
        gathered, table = s.n_interactions * 3 * s.row, 2 * s.other_rows * s.row
    return Traffic(n_layers * gathered, n_layers * streamed + first, table, flops, n_layers)


def restricted_product(s: Sizes, n_entries: int, n_rows: int) -> Traffic:
    """The block of some rows; of `s` the width and the bytes alone count.

    F_m, neighbour, position and two values of an entry; f_n, z_n, out_n and pointer of a row. Rows
    of z, read where the neighbour is one of the rows itself, are few and not counted.
    """
    streamed = n_entries * (2 * s.index + 2 * s.number) + n_rows * (3 * s.row + 12)
    gathered = n_entries * s.feature_row
    return Traffic(gathered, streamed, gathered, 8 * s.dim * n_entries)


def small_request(s: Sizes, n_entries: int, n_rows: int, n_products: int) -> tuple[Traffic, ...]:
    """An influence step on a few rows of matrix factorisation, certificate included.

    The products lie between two evaluations, before and after.
    """
    evaluation = (2 * traffic for traffic in restricted_evaluation(s, n_entries))
    return *evaluation, n_products * restricted_product(s, n_entries, n_rows)


def restricted_evaluation(s: Sizes, n_entries: int) -> tuple[Traffic, ...]:
    """Some rows of the gradient, with the derivatives of their entries.

    The features of the nodes that the entries name are copied, at most one for each entry; the
    derivatives gather both ends of an entry, and the sums one.
    """
    rows, flops = n_entries * s.feature_row, 2 * s.dim * n_entries
    return (
        Traffic(rows, rows, s.n_nodes * s.feature_row),
        Traffic(2 * rows, n_entries * (2 * s.index + 4 * s.number), rows, flops),
        Traffic(rows, n_entries * (s.index + s.number), rows, flops),
    )


def large_request(s: Sizes, n_products: int) -> tuple[Traffic, ...]:
    """An influence step, by the filter, on the rows of most interactions of a factorisation.

    Before and after, the derivatives and the gradient of all interactions are made. Before the
    first, label and weight are brought into their order, each on a cache line of its own. Around a
    product the rows' vector and diagonal are spread over all rows, and the result's rows taken.
    """
    ordered = Traffic(2 * s.n_interactions * _CACHE_LINE, 0, s.n_interactions * (4 + 1))
    spread = Traffic(streamed=6 * s.n_nodes * s.row, calls=3)
    return (
        ordered,
        2 * derivatives(s),
        2 * gradient(s),
        n_products * product(s),
        n_products * spread,
        lanczos(s, s.n_nodes, n_products),
    )


def lanczos(s: Sizes, n_rows: int, n_steps: int) -> Traffic:
    """The vector work of so many steps of Lanczos' method over some rows, beside the products.

    Of the k-th step: k vectors are read twice to orthogonalise a new one, and nine more are read or
    written; in the end all are added up.
    """
    vectors = n_steps * (n_steps + 1) + 10 * n_steps
    flops = 4 * vectors * n_rows * s.dim
    return Traffic(streamed=vectors * n_rows * s.row, flops=flops, calls=8 * n_steps)


def conjugate_gradients(s: Sizes, n_rows: int) -> Traffic:
    """The vector work of one iteration over some rows, beside the product: one call of each op."""
    streamed = sum(VECTORS.values()) * n_rows * s.row
    return Traffic(streamed=streamed, flops=12 * n_rows * s.dim, calls=len(VECTORS))


def graph_build(s: Sizes) -> Traffic:
    """Adjacency, by counting sorts in two levels (csrc/host/grouping.h).

    Ids, 8 bytes each, are read three times: checked, counted, and brought to their buckets. So are
    in the next two passes a neighbour and an edge, twice. In each pass an entry of three indices is
    written to its bucket and read there, then its neighbour and edge are written where their row
    stands: three places, each on a cache line of its own that is read and written. The lines of a
    bucket stay in the cache, whatever the size of the data.
    """
    streamed = 3 * 16 * s.n_interactions + 2 * 2 * 2 * s.index * s.n_interactions
    streamed += 3 * (2 * 3 + 2) * s.index * s.n_interactions
    placed = 3 * 3 * s.n_interactions
    table = _BUCKET * 5 * s.index
    return Traffic(placed * 2 * _CACHE_LINE, streamed + 16 * s.n_nodes, table)


def item_exchange(s: Sizes, n_machines: int, machine: Machine) -> float:
    """Seconds to add up the items' rows of a product over machines that hold a part of the users.

    A ring's all-reduce: each sends 2 (k - 1) / k of the rows.
    """
    share = 2 * (n_machines - 1) / n_machines
    return share * s.n_items * s.row / machine.link if n_machines > 1 else 0.0


def held(s: Sizes, n_vectors: int, *, n_rows: int | None = None) -> dict[str, int]:
    """Bytes of what a solve on all rows, or on `n_rows`, holds at once, by what it is.

    Ids stand in the data as int64 with a float32 label. The adjacency holds each interaction's
    neighbour and number at both its ends, and the stream once more. The derivatives are made
    between lists of both ends, of which one is the stream's own. Where rows gather there is no
    stream: r and w are brought from interaction order into that of the entries.
    """
    e = s.n_interactions
    adjacency = 2 * e * 2 * s.index + 8 * (s.n_nodes + 1)
    if s.gathers:
        derivatives = 8 * e + 7 * e * s.number  # loss, r and w once, r and w twice more
    else:
        adjacency += 2 * e * s.index + 8 * (s.streamed_rows + 1)
        derivatives = e * s.index + 4 * e * s.number  # label, loss, r and w
    stored = s.n_nodes * s.feature_row if s.feature != s.number else 0
    return {
        "interactions": e * (8 + 8 + 4),
        "adjacency": adjacency,
        "derivatives": derivatives,
        "embeddings": 2 * s.n_nodes * s.row + stored,  # the old ones and the new ones
        "vectors": n_vectors * (s.n_nodes if n_rows is None else n_rows) * s.row,
    }
