// The schedule of all sums over the entries of rows: who sums what, in which order. What an entry
// adds and how a row ends is the body's.
//
// Three kinds of rows, told apart by their length alone:
//   short   a team sums the row by itself, 32 / L rows to a warp;
//   middle  the teams of a warp share the row's entries;
//   long    whole segments of kSegment entries are summed first, by a warp each (sum_segments);
//           one warp then adds the row's two ends to them (sum_rows).
// Deterministic: one writer per row, and an order of summation that follows from where the row's
// entries lie, not from the launch. Offsets are 64-bit.
//
// The host cannot see rowptr and ids without a synchronisation: a range or an id that is out of
// bounds is not followed, and poisons the row with NaN.
//
// A body is a kernel's argument, a struct that derives from RowSet<T>, with
//   Storage    what its rows of features are stored as, and the layout follows from;
//   kUnroll    entries that are on their way from memory at the same time;
//   kResident  blocks to a multiprocessor: what decides how many registers a thread has;
//   kDot       whether an entry adds a multiple of an inner product over all d features;
//   kName      of the kernels, in errors;
//   takes(range)  whether the row is the body's: all are, where it does not say otherwise;
//   Row<Lay>   what the entries of a row meet, in registers: begin<Lay>(n, column);
//   Entry<Lay> an entry on its way: read<Lay>(j, column);
//   dot<Lay>(row, entry)          with kDot: this lane's part of the inner product;
//   add<Lay>(row, entry, dot, sum)  adds the entry at the lane's column;
//   write<Lay>(n, column, sum)    ends the row; called by one lane for each column below d.
// A column at or beyond d is that of a lane without a pack: it must read nothing.
#pragma once

#include <cstdint>

#include "launch.cuh"
#include "pack.cuh"

namespace ifru::cuda {

struct RowRange {
  int64_t begin;
  int64_t end;
  bool valid;

  __device__ __forceinline__ int64_t length() const { return end - begin; }
};

// T is what is summed.
template <class T>
struct RowSet {
  using Value = T;
  const int64_t* rowptr;  // [R + 1]
  T* partial;             // [n_segments(n_entries), d], sums of whole segments; null if none
  int64_t n_rows;
  int64_t n_entries;
  int64_t d;

  __device__ __forceinline__ bool takes(const RowRange&) const { return true; }
};

constexpr int kRowsBlock = 128;
constexpr int kWarpsPerBlock = kRowsBlock / kWarpSize;
constexpr int64_t kShortRow = 32;
constexpr int64_t kSegment = 256;
constexpr int64_t kLongRow = 2 * kSegment;  // the shortest long row has one whole segment

// Rows of `partial`: a graph with fewer entries has no long row.
inline int64_t n_segments(int64_t n_entries) {
  return n_entries > kLongRow ? n_entries / kSegment : 0;
}

template <class T>
__device__ __forceinline__ RowRange row_range(const RowSet<T>& rows, int64_t n) {
  const int64_t begin = rows.rowptr[n];
  const int64_t end = rows.rowptr[n + 1];
  const bool valid = begin >= 0 && begin <= end && end <= rows.n_entries;
  return valid ? RowRange{begin, end, true} : RowRange{0, 0, false};
}

// The last row that begins at or before `entry`: the one that holds it, where rowptr is ordered.
template <class T>
__device__ __forceinline__ int64_t row_of(const RowSet<T>& rows, int64_t entry) {
  int64_t low = 0;
  int64_t high = rows.n_rows;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (rows.rowptr[middle] <= entry ? low : high) = middle;
  }
  return low;
}

// An id as it is, or -1 if it is out of bounds.
template <class I>
__device__ __forceinline__ int64_t checked_id(I id, int64_t n) {
  const int64_t m = static_cast<int64_t>(id);
  return m >= 0 && m < n ? m : -1;
}

// The pack of row m of [N, d] at a column: zeros for a negative m and beyond d.
template <class Lay, class S>
__device__ __forceinline__ Pack<S, Lay::V> read_pack(const S* rows, int64_t m, int64_t d,
                                                     int64_t column) {
  using P = Pack<S, Lay::V>;
  return m >= 0 && column < d ? P::read(rows + m * d + column) : P::filled(S{});
}

// Loops of unknown length are not unrolled: that would cost registers and spill.

// Adds K entries, j, j + step, ...
template <class Lay, int K, class Body, class Row, class Sum>
__device__ __forceinline__ void add_entries(const Body& b, const Row& row, int64_t j, int step,
                                            int64_t column, Sum& sum) {
  using T = typename Body::Value;
  typename Body::template Entry<Lay> entry[K];
  T dot[K] = {};
#pragma unroll
  for (int u = 0; u < K; ++u) entry[u] = b.template read<Lay>(j + u * step, column);
  if constexpr (Body::kDot) {
#pragma unroll
    for (int u = 0; u < K; ++u) dot[u] = b.template dot<Lay>(row, entry[u]);
    sum_over_lanes<Lay>(dot);
  }
#pragma unroll
  for (int u = 0; u < K; ++u) b.template add<Lay>(row, entry[u], dot[u], sum);
}

// Adds entries first, first + step, ... below `end` to `sum`. The lanes of a team come together.
template <class Lay, class Body, class Row, class Sum>
__device__ __forceinline__ void gather(const Body& b, const Row& row, int64_t first, int64_t end,
                                       int step, int64_t column, Sum& sum) {
  constexpr int K = Body::kUnroll;
  int64_t j = first;
#pragma unroll 1
  for (; j + (K - 1) * step < end; j += K * step) {
    add_entries<Lay, K>(b, row, j, step, column, sum);
  }
#pragma unroll 1
  for (; j < end; j += step) add_entries<Lay, 1>(b, row, j, step, column, sum);
}

// Sums each segment that lies within a long row. The others are NaN: only a rowptr that is not
// ordered leads to them.
template <class Body, class Lay>
__global__ void __launch_bounds__(kRowsBlock, Body::kResident) sum_segments(const Body b) {
  using T = typename Body::Value;
  using Sum = Pack<T, Lay::V>;
  const int lane = threadIdx.x % kWarpSize;
  const int team = lane / Lay::L;
  const int64_t warp = int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize;
  const int64_t n_segments = b.n_entries / kSegment;
  for (int64_t i = warp; i < n_segments; i += int64_t(gridDim.x) * kWarpsPerBlock) {
    const int64_t begin = i * kSegment;
    const int64_t end = begin + kSegment;
    const int64_t n = row_of(b, begin);
    const RowRange range = row_range(b, n);
    const bool asked =
        b.takes(range) && range.length() > kLongRow && range.begin <= begin && end <= range.end;
    for_tiles<Lay>(b.d, [&](int64_t tile) {
      const int64_t column = tile + lane % Lay::L * Lay::V;
      auto sum = Sum::filled(asked ? T(0) : T(NAN));
      if (asked) {
        const auto row = b.template begin<Lay>(n, column);
        gather<Lay>(b, row, begin + team, end, Lay::kTeams, column, sum);
      }
      sum_over_teams<Lay>(sum);
      if (team == 0 && column < b.d) sum.write(b.partial + i * b.d + column);
    });
  }
}

template <class Body, class Lay>
__global__ void __launch_bounds__(kRowsBlock, Body::kResident) sum_rows(const Body b) {
  using T = typename Body::Value;
  using Sum = Pack<T, Lay::V>;
  const int lane = threadIdx.x % kWarpSize;
  const int team = lane / Lay::L;
  const int64_t warp = int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize;
  const int64_t stride = int64_t(gridDim.x) * kWarpsPerBlock * Lay::kTeams;
  for (int64_t first = warp * Lay::kTeams; first < b.n_rows; first += stride) {
    // Short rows, one to a team.
    const int64_t own = first + team;
    const bool exists = own < b.n_rows;
    const RowRange range = exists ? row_range(b, own) : RowRange{0, 0, true};
    const bool taken = exists && b.takes(range);
    const bool is_short = range.length() <= kShortRow;
    if (taken && is_short) {
      for_tiles<Lay>(b.d, [&](int64_t tile) {
        const int64_t column = tile + lane % Lay::L * Lay::V;
        auto sum = Sum::filled(range.valid ? T(0) : T(NAN));
        const auto row = b.template begin<Lay>(own, column);
        gather<Lay>(b, row, range.begin, range.end, 1, column, sum);
        if (column < b.d) b.template write<Lay>(own, column, sum);
      });
    }
    // The others one after the other, by the whole warp.
    const unsigned others = __ballot_sync(~0u, taken && !is_short);
    for (int k = 0; k < Lay::kTeams; ++k) {
      if ((others >> (k * Lay::L) & 1) == 0) continue;
      const int64_t n = first + k;
      const RowRange whole = row_range(b, n);
      const bool is_long = whole.length() > kLongRow;
      const int64_t first_segment = (whole.begin + kSegment - 1) / kSegment;
      const int64_t last_segment = whole.end / kSegment;
      for_tiles<Lay>(b.d, [&](int64_t tile) {
        const int64_t column = tile + lane % Lay::L * Lay::V;
        const auto row = b.template begin<Lay>(n, column);
        auto sum = Sum::filled(T(0));
        int64_t begin = whole.begin;
        int64_t end = is_long ? first_segment * kSegment : whole.end;
#pragma unroll 1
        for (;;) {  // once, or for both ends of a long row
          gather<Lay>(b, row, begin + team, end, Lay::kTeams, column, sum);
          if (end == whole.end) break;
          if (column < b.d) {
            for (int64_t i = first_segment + team; i < last_segment; i += Lay::kTeams) {
              sum.add(Sum::read(b.partial + i * b.d + column));
            }
          }
          begin = last_segment * kSegment;
          end = whole.end;
        }
        sum_over_teams<Lay>(sum);
        if (team == 0 && column < b.d) b.template write<Lay>(n, column, sum);
      });
    }
  }
}

// All rows of a body. The bits do not depend on `max_blocks`.
template <class Lay, class Body>
void launch_rows(const Body& b, cudaStream_t stream, int64_t max_blocks = kMaxBlocks) {
  if (b.n_rows == 0 || b.d == 0) return;
  const int64_t segments = n_segments(b.n_entries);
  if (segments > 0) {
    launch(Body::kName, sum_segments<Body, Lay>, n_blocks(segments, kWarpsPerBlock, max_blocks),
           kRowsBlock, stream, b);
  }
  launch(Body::kName, sum_rows<Body, Lay>,
         n_blocks(b.n_rows, kWarpsPerBlock * Lay::kTeams, max_blocks), kRowsBlock, stream, b);
}

}  // namespace ifru::cuda
