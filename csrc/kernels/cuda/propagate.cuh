// Propagation on the GPU, equation (1): one Horner step, and the scaling that starts the recursion.
//
// Regime: memory bound, d * sizeof(T) gathered bytes per adjacency entry for d flops. Three kinds
// of rows, told apart by their length alone:
//   short   a team sums the row by itself, 32 / L rows to a warp;
//   middle  the teams of a warp share the row's entries;
//   long    whole segments of kSegment entries are summed first, by a warp each
//   (propagate_segments);
//           one warp then adds the row's two ends to them (propagate_rows).
// Deterministic: one writer per row, and an order of summation that follows from where the row's
// entries lie, not from the launch. Offsets are 64-bit.
//
// The host cannot see rowptr and neighbor without a synchronisation: a range or an id that is out
// of bounds is not followed, and poisons the row with NaN.
#pragma once

#include <cstdint>

#include "launch.cuh"
#include "pack.cuh"

namespace ifru::cuda {

template <class T, class I>
struct PropagateParams {
  const int64_t* rowptr;     // [N + 1]
  const I* neighbor;         // [2E]
  const T* inv_sqrt_degree;  // [N], s
  const T* x;                // [N, d]
  const T* scaled;           // [N, d], S y of the step before
  const T* ridge;            // [N] or null
  const T* v;                // [N, d], read when ridge is not null
  T* out;                    // [N, d]
  T* partial;                // [n_segments(2E), d], sums of whole segments; null if there are none
  T alpha;
  bool scale_output;  // true for the inner steps, whose result is gathered again
  int64_t n_nodes;
  int64_t n_entries;
  int64_t d;
};

constexpr int kPropagateBlock = 128;
// Per multiprocessor, half of the warps it can hold: 64 registers to a thread. Without it ptxas
// takes fewer, and spills.
constexpr int kResidentBlocks = 8;
constexpr int kWarpsPerBlock = kPropagateBlock / kWarpSize;
constexpr int64_t kShortRow = 32;
constexpr int64_t kSegment = 256;
constexpr int64_t kLongRow = 2 * kSegment;  // the shortest long row has one whole segment

// Rows of `partial`: a graph with fewer entries has no long row.
inline int64_t n_segments(int64_t n_entries) {
  return n_entries > kLongRow ? n_entries / kSegment : 0;
}

struct RowRange {
  int64_t begin;
  int64_t end;
  bool valid;

  __device__ __forceinline__ int64_t length() const { return end - begin; }
};

template <class T, class I>
__device__ __forceinline__ RowRange row_range(const PropagateParams<T, I>& p, int64_t n) {
  const int64_t begin = p.rowptr[n];
  const int64_t end = p.rowptr[n + 1];
  const bool valid = begin >= 0 && begin <= end && end <= p.n_entries;
  return valid ? RowRange{begin, end, true} : RowRange{0, 0, false};
}

// Loops of unknown length are not unrolled: that would cost registers and spill.

// Adds entries first, first + step, ... below `end` to `sum`, at one column. Four at a time, so
// that four rows are on their way from memory.
template <class T, class I, int V>
__device__ __forceinline__ void gather(const PropagateParams<T, I>& p, int64_t first, int64_t end,
                                       int step, int64_t column, Pack<T, V>& sum) {
  constexpr int kUnroll = 4;
  const auto read = [&](I id) {
    const int64_t m = static_cast<int64_t>(id);
    const bool valid = m >= 0 && m < p.n_nodes;
    return valid ? Pack<T, V>::read(p.scaled + m * p.d + column) : Pack<T, V>::filled(T(NAN));
  };
  int64_t j = first;
#pragma unroll 1
  for (; j + (kUnroll - 1) * step < end; j += kUnroll * step) {
    Pack<T, V> part[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) part[u] = read(p.neighbor[j + u * step]);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) sum.add(part[u]);
  }
#pragma unroll 1
  for (; j < end; j += step) sum.add(read(p.neighbor[j]));
}

// out = alpha x + s sum, times s for the inner steps, plus ridge o v.
template <class T, class I, int V>
__device__ __forceinline__ void write_row(const PropagateParams<T, I>& p, int64_t n, int64_t column,
                                          Pack<T, V> sum) {
  const int64_t k = n * p.d + column;
  const T s = p.inv_sqrt_degree[n];
  sum.scale(s);
  sum.add(p.alpha, Pack<T, V>::read(p.x + k));
  if (p.scale_output) sum.scale(s);
  if (p.ridge != nullptr) sum.add(p.ridge[n], Pack<T, V>::read(p.v + k));
  sum.write(p.out + k);
}

// The last row that begins at or before `entry`: the one that holds it, where rowptr is ordered.
inline __device__ int64_t row_of(const int64_t* rowptr, int64_t n_nodes, int64_t entry) {
  int64_t low = 0;
  int64_t high = n_nodes;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (rowptr[middle] <= entry ? low : high) = middle;
  }
  return low;
}

// Sums each segment that lies within a long row. The others are NaN: only a rowptr that is not
// ordered leads to them.
template <class T, class I, class Lay>
__global__ void __launch_bounds__(kPropagateBlock, kResidentBlocks)
    propagate_segments(const PropagateParams<T, I> p) {
  constexpr int V = Lay::V;
  const int lane = threadIdx.x % kWarpSize;
  const int team = lane / Lay::L;
  const int64_t warp = int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize;
  const int64_t n_segments = p.n_entries / kSegment;
  for (int64_t i = warp; i < n_segments; i += int64_t(gridDim.x) * kWarpsPerBlock) {
    const int64_t begin = i * kSegment;
    const int64_t end = begin + kSegment;
    const RowRange row = row_range(p, row_of(p.rowptr, p.n_nodes, begin));
    const bool asked = row.length() > kLongRow && row.begin <= begin && end <= row.end;
#pragma unroll 1
    for (int64_t tile = 0; tile < p.d; tile += Lay::L * V) {
      const int64_t column = tile + lane % Lay::L * V;
      auto sum = Pack<T, V>::filled(asked ? T(0) : T(NAN));
      if (asked && column < p.d) gather(p, begin + team, end, Lay::kTeams, column, sum);
      sum_over_teams<Lay>(sum);
      if (team == 0 && column < p.d) sum.write(p.partial + i * p.d + column);
    }
  }
}

template <class T, class I, class Lay>
__global__ void __launch_bounds__(kPropagateBlock, kResidentBlocks)
    propagate_rows(const PropagateParams<T, I> p) {
  constexpr int V = Lay::V;
  const int lane = threadIdx.x % kWarpSize;
  const int team = lane / Lay::L;
  const int64_t warp = int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize;
  const int64_t stride = int64_t(gridDim.x) * kWarpsPerBlock * Lay::kTeams;
  for (int64_t first = warp * Lay::kTeams; first < p.n_nodes; first += stride) {
    // Short rows, one to a team.
    const int64_t own = first + team;
    const bool exists = own < p.n_nodes;
    const RowRange range = exists ? row_range(p, own) : RowRange{0, 0, true};
    const bool is_short = range.length() <= kShortRow;
    if (exists && is_short) {
#pragma unroll 1
      for (int64_t column = lane % Lay::L * V; column < p.d; column += Lay::L * V) {
        auto sum = Pack<T, V>::filled(range.valid ? T(0) : T(NAN));
        gather(p, range.begin, range.end, 1, column, sum);
        write_row(p, own, column, sum);
      }
    }
    // The others one after the other, by the whole warp.
    const unsigned others = __ballot_sync(~0u, !is_short);
    for (int k = 0; k < Lay::kTeams; ++k) {
      if ((others >> (k * Lay::L) & 1) == 0) continue;
      const RowRange row = row_range(p, first + k);
      const bool is_long = row.length() > kLongRow;
      const int64_t first_segment = (row.begin + kSegment - 1) / kSegment;
      const int64_t last_segment = row.end / kSegment;
      const int64_t head_end = is_long ? first_segment * kSegment : row.end;
#pragma unroll 1
      for (int64_t tile = 0; tile < p.d; tile += Lay::L * V) {
        const int64_t column = tile + lane % Lay::L * V;
        auto sum = Pack<T, V>::filled(T(0));
        if (column < p.d) {
          gather(p, row.begin + team, head_end, Lay::kTeams, column, sum);
          if (is_long) {
            for (int64_t i = first_segment + team; i < last_segment; i += Lay::kTeams) {
              sum.add(Pack<T, V>::read(p.partial + i * p.d + column));
            }
            gather(p, last_segment * kSegment + team, row.end, Lay::kTeams, column, sum);
          }
        }
        sum_over_teams<Lay>(sum);
        if (team == 0 && column < p.d) write_row(p, first + k, column, sum);
      }
    }
  }
}

// out = factor * s o x (s null: factor * x), plus ridge o v where given. A team per row.
template <class T, class Lay>
__global__ void __launch_bounds__(kPropagateBlock, kResidentBlocks)
    scale_rows(T factor, const T* s, const T* x, const T* ridge, const T* v, int64_t n_nodes,
               int64_t d, T* out) {
  using P = Pack<T, Lay::V>;
  constexpr int kRows = kPropagateBlock / Lay::L;
  const int64_t first = int64_t(blockIdx.x) * kRows + threadIdx.x / Lay::L;
  for (int64_t n = first; n < n_nodes; n += int64_t(gridDim.x) * kRows) {
    const T left = s == nullptr ? factor : factor * s[n];
#pragma unroll 1
    for (int64_t column = threadIdx.x % Lay::L * Lay::V; column < d; column += Lay::L * Lay::V) {
      P result = P::read(x + n * d + column);
      result.scale(left);
      if (ridge != nullptr) result.add(ridge[n], P::read(v + n * d + column));
      result.write(out + n * d + column);
    }
  }
}

constexpr int64_t kMaxBlocks = 1 << 20;  // the kernels stride over the grid beyond

// All layers. `alpha` [L + 1] lies on the host; `scratch` [N, d] may be null when L = 0, and so may
// p.partial. The bits do not depend on `max_blocks`.
template <class T, class I>
void propagate(PropagateParams<T, I> p, const double* alpha, int64_t n_layers, T* scratch,
               cudaStream_t stream, int64_t max_blocks = kMaxBlocks) {
  if (p.n_nodes == 0 || p.d == 0) return;
  const bool full_packs = are_full_packs<T>(p.d, p.x, p.v, p.out, scratch, p.partial);
  const T* ridge = p.ridge;
  const auto blocks = [&](int64_t work, int64_t per_block) {
    const int64_t needed = (work + per_block - 1) / per_block;
    return needed < max_blocks ? needed : max_blocks;
  };
  dispatch_layout<T>(p.d, full_packs, [&](auto layout) {
    using Lay = decltype(layout);
    const int64_t scale_blocks = blocks(p.n_nodes, kPropagateBlock / Lay::L);
    if (n_layers == 0) {
      launch("scale_rows", scale_rows<T, Lay>, scale_blocks, kPropagateBlock, stream,
             static_cast<T>(alpha[0]), nullptr, p.x, ridge, p.v, p.n_nodes, p.d, p.out);
      return;
    }
    // The steps alternate between `out` and the scratch buffer so that the last lands in `out`.
    T* buffers[2] = {p.out, scratch};
    launch("scale_rows", scale_rows<T, Lay>, scale_blocks, kPropagateBlock, stream,
           static_cast<T>(alpha[n_layers]), p.inv_sqrt_degree, p.x, nullptr, nullptr, p.n_nodes,
           p.d, buffers[n_layers % 2]);
    const int64_t segments = n_segments(p.n_entries);
    for (int64_t layer = n_layers - 1; layer >= 0; --layer) {
      p.scaled = buffers[(layer + 1) % 2];
      p.out = buffers[layer % 2];
      p.alpha = static_cast<T>(alpha[layer]);
      p.scale_output = layer > 0;
      p.ridge = layer > 0 ? nullptr : ridge;
      if (segments > 0) {
        launch("propagate_segments", propagate_segments<T, I, Lay>,
               blocks(segments, kWarpsPerBlock), kPropagateBlock, stream, p);
      }
      launch("propagate_rows", propagate_rows<T, I, Lay>,
             blocks(p.n_nodes, kWarpsPerBlock * Lay::kTeams), kPropagateBlock, stream, p);
    }
  });
}

}  // namespace ifru::cuda
