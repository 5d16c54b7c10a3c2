// Entries into their rows, in a stable order: a counting sort in two levels, in parallel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "parallel.h"

namespace ifru::host {

// Places entries row by row, those of a row in the order they come in. A scatter over all rows at
// once would miss the caches at each entry, and per-thread counts of all rows would take memory.
// So the entries first go to buckets, ranges of rows with few enough entries for the cache; then
// each bucket is sorted for itself. The result does not depend on the number of threads.
//
//   n            number of the source's items, that are cut into parts
//   source       source(begin, end, emit) calls emit(entry) for the entries of items [begin, end)
//                in order, always the same ones; entry.row is in [0, n_rows)
//   scratch      room for all entries
//   base         position of the first entry
//   rowptr       [n_rows + 1] is written: where each row begins; base plus all entries at last
//   place        place(position, entry) is called once for each entry
template <class Entry, class Source, class Place>
void group_by_row(int64_t n, int64_t n_rows, int64_t n_threads, const Source& source,
                  Entry* scratch, int64_t base, int64_t* rowptr, const Place& place) {
  constexpr int64_t kMaxBins = 1 << 13;     // counts of one thread: 64 KB
  constexpr int64_t kBucket = 1 << 16;      // entries: as placed and beside their counts, in L2
  constexpr int64_t kMaxBuckets = 1 << 10;  // written to at once: as many as the TLB has pages
  int shift = 0;
  while (n_rows >> shift >= kMaxBins) ++shift;
  const int64_t n_bins = (n_rows >> shift) + 1;
  const int64_t n_parts = useful_threads(n_threads, n);

  std::vector<int64_t> count(n_parts * n_bins, 0);
  parallel_tasks(n_parts, n_threads, [&](int64_t part) {
    int64_t* bin = count.data() + part * n_bins;
    source(part_begin(n, n_parts, part), part_begin(n, n_parts, part + 1),
           [&](const Entry& entry) { ++bin[static_cast<int64_t>(entry.row) >> shift]; });
  });

  // Neighbouring bins make a bucket, and one that is larger makes one alone.
  int64_t n_entries = 0;
  for (const int64_t c : count) n_entries += c;
  const int64_t full = std::max(kBucket, n_entries / kMaxBuckets + 1);
  std::vector<int32_t> bucket_of(n_bins);
  std::vector<int64_t> first_bin;
  std::vector<int64_t> begin;  // of each bucket in scratch
  for (int64_t bin = 0, position = 0; bin < n_bins; ++bin) {
    if (bin == 0 || position - begin.back() >= full) {
      first_bin.push_back(bin);
      begin.push_back(position);
    }
    bucket_of[bin] = static_cast<int32_t>(begin.size()) - 1;
    for (int64_t part = 0; part < n_parts; ++part) position += count[part * n_bins + bin];
  }
  const int64_t n_buckets = static_cast<int64_t>(begin.size());
  first_bin.push_back(n_bins);
  begin.push_back(n_entries);

  // [part, bucket]: where each part writes next, after the parts before it.
  std::vector<int64_t> next(n_parts * n_buckets);
  std::copy(begin.begin(), begin.end() - 1, next.begin());
  for (int64_t part = 0; part + 1 < n_parts; ++part) {
    int64_t* mine = next.data() + part * n_buckets;
    std::copy(mine, mine + n_buckets, mine + n_buckets);
    for (int64_t bin = 0; bin < n_bins; ++bin) {
      mine[n_buckets + bucket_of[bin]] += count[part * n_bins + bin];
    }
  }
  parallel_tasks(n_parts, n_threads, [&](int64_t part) {
    int64_t* mine = next.data() + part * n_buckets;
    source(part_begin(n, n_parts, part), part_begin(n, n_parts, part + 1), [&](const Entry& entry) {
      scratch[mine[bucket_of[static_cast<int64_t>(entry.row) >> shift]]++] = entry;
    });
  });

  parallel_tasks(n_buckets, n_parts, [&](int64_t bucket) {
    const int64_t first = first_bin[bucket] << shift;
    const int64_t last = std::min(first_bin[bucket + 1] << shift, n_rows);
    const Entry* entries = scratch + begin[bucket];
    const int64_t size = begin[bucket + 1] - begin[bucket];
    std::vector<int64_t> position(last - first + 1, 0);
    for (int64_t k = 0; k < size; ++k) ++position[static_cast<int64_t>(entries[k].row) - first + 1];
    position[0] = base + begin[bucket];
    for (int64_t row = first; row < last; ++row) {
      rowptr[row] = position[row - first];
      position[row - first + 1] += position[row - first];
    }
    for (int64_t k = 0; k < size; ++k) {
      place(position[static_cast<int64_t>(entries[k].row) - first]++, entries[k]);
    }
  });
  rowptr[n_rows] = base + n_entries;
}

// Memory that is written before it is read.
template <class T>
std::unique_ptr<T[]> uninitialised(int64_t n) {
  return std::unique_ptr<T[]>(new T[n]);
}

}  // namespace ifru::host
