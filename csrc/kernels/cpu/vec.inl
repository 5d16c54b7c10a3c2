// Portable SIMD for one instruction set: GCC/Clang vector extensions of IFRU_VECTOR_BYTES.
// Everything is in an anonymous namespace: units of other instruction sets must not share it.

namespace {

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(IFRU_VECTOR_BYTES)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(IFRU_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kWidth = IFRU_VECTOR_BYTES / sizeof(T);

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// What features stored as S are computed with.
template <class S>
struct ValueOf {
  typedef S type;
};
template <>
struct ValueOf<BFloat16> {
  typedef float type;
};
template <>
struct ValueOf<Float16> {
  typedef float type;
};
template <class S>
using Value = typename ValueOf<S>::type;

template <class S>
inline S widen(S x) {
  return x;
}

typedef uint16_t VecU16 __attribute__((vector_size(IFRU_VECTOR_BYTES / 2)));
typedef uint32_t VecU32 __attribute__((vector_size(IFRU_VECTOR_BYTES)));

// The same bits as another type.
template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// Sixteen-bit words, one to a lane. Intrinsics: GCC widens in two halves, and the unmasked forms of
// AVX-512 have an undefined operand that it warns of.
inline VecU32 load_halves(const void* p) {
#if defined(__AVX512F__)
  const __m256i words = _mm256_loadu_si256(static_cast<const __m256i*>(p));
  return bit_cast<VecU32>(_mm512_maskz_cvtepu16_epi32(0xffff, words));
#elif defined(__AVX2__)
  return bit_cast<VecU32>(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
#else
  VecU16 words;
  __builtin_memcpy(&words, p, sizeof words);
  return __builtin_convertvector(words, VecU32);
#endif
}

// A bfloat16 is the upper half of a float.
inline Vec<float> load(const BFloat16* p) { return bit_cast<Vec<float>>(load_halves(p) << 16); }
inline float widen(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

// Exponent and mantissa of a half move into place and the exponent's bias is corrected, in
// integers: a float that is subnormal on the way would be lost where these are flushed to zero.
inline float widen(Float16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16;
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13;
  if (magnitude >= 0x7c00u << 13) return bit_cast<float>(sign | 0x7f800000u | magnitude);
  if (magnitude >= 0x0400u << 13) return bit_cast<float>(sign | (magnitude + (112u << 23)));
  // Subnormal: the mantissa in units of 2^-24, beside an exponent that is taken off again.
  const float size = bit_cast<float>(magnitude + (113u << 23)) - 0x1p-14f;
  return bit_cast<float>(sign | bit_cast<uint32_t>(size));
}
inline Vec<float> load(const Float16* p) {
#if defined(__AVX512F__)
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return bit_cast<Vec<float>>(_mm512_maskz_cvtph_ps(0xffff, halves));
#elif defined(__F16C__)
  return bit_cast<Vec<float>>(
      _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  Vec<float> v;
  for (int k = 0; k < kWidth<float>; ++k) v[k] = widen(p[k]);
  return v;
#endif
}

// Halving tree, lane k + lane k + half: a fixed order of additions, in registers.
template <class T, int kBytes>
struct Lanes {
  typedef T type __attribute__((vector_size(kBytes)));
};

inline float tree_sum(Lanes<float, 16>::type v) {
  v += __builtin_shufflevector(v, v, 2, 3, 0, 1);
  return v[0] + v[1];
}
inline double tree_sum(Lanes<double, 16>::type v) { return v[0] + v[1]; }
#if IFRU_VECTOR_BYTES >= 32
inline float tree_sum(Lanes<float, 32>::type v) {
  return tree_sum(__builtin_shufflevector(v, v, 0, 1, 2, 3) +
                  __builtin_shufflevector(v, v, 4, 5, 6, 7));
}
inline double tree_sum(Lanes<double, 32>::type v) {
  return tree_sum(__builtin_shufflevector(v, v, 0, 1) + __builtin_shufflevector(v, v, 2, 3));
}
#endif
#if IFRU_VECTOR_BYTES >= 64
inline float tree_sum(Lanes<float, 64>::type v) {
  return tree_sum(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                  __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}
inline double tree_sum(Lanes<double, 64>::type v) {
  return tree_sum(__builtin_shufflevector(v, v, 0, 1, 2, 3) +
                  __builtin_shufflevector(v, v, 4, 5, 6, 7));
}
#endif
template <class T>
inline T horizontal_sum(Vec<T> v) {
  return tree_sum(v);
}

// Rows of a fixed number of features live in registers.
template <class T, int D>
struct Row {
  static_assert(D % kWidth<T> == 0, "D must fill whole vectors");
  static constexpr int kVectors = D / kWidth<T>;
  Vec<T> part[kVectors];

  static Row zero() { return Row{}; }
  Row fresh() const { return Row{}; }
  template <class S>
  static Row read(const S* p) {
    Row row;
    for (int k = 0; k < kVectors; ++k) row.part[k] = load(p + k * kWidth<T>);
    return row;
  }
  void write(T* p) const {
    for (int k = 0; k < kVectors; ++k) store(p + k * kWidth<T>, part[k]);
  }
  void add(const Row& x) {
    for (int k = 0; k < kVectors; ++k) part[k] += x.part[k];
  }
  void add(T a, const Row& x) {
    for (int k = 0; k < kVectors; ++k) part[k] += a * x.part[k];
  }
  void scale(T a) {
    for (int k = 0; k < kVectors; ++k) part[k] *= a;
  }
};

// Any number of features: whole vectors, then single elements.
template <class T, class S>
inline void axpy(int64_t d, T a, const S* x, T* y) {
  int64_t k = 0;
  for (; k + kWidth<T> <= d; k += kWidth<T>) store(y + k, load(y + k) + a * load(x + k));
  for (; k < d; ++k) y[k] += a * widen(x[k]);
}

template <class S>
inline Value<S> dot(int64_t d, const S* x, const S* y) {
  using T = Value<S>;
  Vec<T> sum = {};
  T tail = 0;
  int64_t k = 0;
  for (; k + kWidth<T> <= d; k += kWidth<T>) sum += load(x + k) * load(y + k);
  for (; k < d; ++k) tail += widen(x[k]) * widen(y[k]);
  return horizontal_sum<T>(sum) + tail;
}

template <class T>
inline void set_zero(int64_t d, T* y) {
  for (int64_t k = 0; k < d; ++k) y[k] = 0;
}

// Long rows are summed in segments of this many entries: the partial sums keep the rounding error
// of a hub of a million entries at that of a few thousand, and their order depends on the row
// alone.
constexpr int64_t kSegment = 512;

// Calls body(first, last) for each segment of the row [begin, end); stops at the first false.
template <class Body>
inline bool for_segments(int64_t begin, int64_t end, Body&& body) {
  for (int64_t first = begin; first < end; first += kSegment) {
    if (!body(first, first + kSegment < end ? first + kSegment : end)) return false;
  }
  return true;
}

// Any number of features is worked on in tiles whose partial sums fit the stack.
constexpr int64_t kTile = 1024;

// Calls body(first_feature, n_features) for each tile of [0, d).
template <class Body>
inline bool for_tiles(int64_t d, Body&& body) {
  for (int64_t first = 0; first < d; first += kTile) {
    if (!body(first, d - first < kTile ? d - first : kTile)) return false;
  }
  return true;
}

// How many neighbours ahead the gathers are prefetched: far enough to hide a memory access behind
// the arithmetic of the rows between, near enough not to be evicted again.
constexpr int64_t kPrefetchDistance = 8;

// Row `id` of a table of d features. The id may not have been checked yet: the address is formed
// without pointer arithmetic, and a prefetch of a bad one does nothing.
template <class T, class I>
inline void prefetch_row(const T* table, I id, int64_t d) {
  const uint64_t bytes = uint64_t(d) * sizeof(T);
  const uint64_t row = reinterpret_cast<uint64_t>(table) + uint64_t(int64_t(id)) * bytes;
  for (uint64_t offset = 0; offset < bytes; offset += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(row + offset));
  }
}

// One comparison catches negative ids as well.
template <class I>
inline bool in_range(I id, int64_t n) {
  return static_cast<uint64_t>(static_cast<int64_t>(id)) < static_cast<uint64_t>(n);
}

// Calls the kernel of the fixed sizes with its size as a template argument, of others with 0.
template <template <class, class, int> class Kernel, class T, class I, class Args, class... Range>
auto for_width(const Args& args, Range... range) {
  switch (args.d) {
    case 16:
      return Kernel<T, I, 16>::run(args, range...);
    case 32:
      return Kernel<T, I, 32>::run(args, range...);
    case 48:
      return Kernel<T, I, 48>::run(args, range...);
    case 64:
      return Kernel<T, I, 64>::run(args, range...);
    case 96:
      return Kernel<T, I, 96>::run(args, range...);
    case 128:
      return Kernel<T, I, 128>::run(args, range...);
    default:
      return Kernel<T, I, 0>::run(args, range...);
  }
}

}  // namespace
