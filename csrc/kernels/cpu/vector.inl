// Vector updates of conjugate gradients, each one pass over memory. Scalars accumulate in float64,
// in a fixed number of lanes within blocks of a fixed length: the order of a sum depends on the
// vector's shape alone, and so do its bits, for any number of threads.
// Regime: memory bound, two flops per element and operand.

namespace {

constexpr int kLanes = 16;

struct LaneSum {
  double lane[kLanes] = {};

  template <class T>
  void add(int k, T x, T y) {
    lane[k] += static_cast<double>(x) * static_cast<double>(y);
  }
  double total() const {
    double sum = 0;
    for (int k = 0; k < kLanes; ++k) sum += lane[k];
    return sum;
  }
};

// Calls body(k, lane) for the elements of [begin, end), whole groups of lanes first.
template <class Body>
inline void for_lanes(int64_t begin, int64_t end, Body&& body) {
  int64_t k = begin;
  for (; k + kLanes <= end; k += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) body(k + lane, lane);
  }
  for (int lane = 0; k < end; ++k, ++lane) body(k, lane);
}

template <class T>
double dot_block(const T* x, const T* y, int64_t begin, int64_t end) {
  LaneSum sum;
  for_lanes(begin, end, [&](int64_t k, int lane) { sum.add(lane, x[k], y[k]); });
  return sum.total();
}

// x += alpha p, r -= alpha ap on rows [begin, end); <r, r> and <r, M r> of the new r, M diagonal.
// alpha = 0 changes nothing, whatever p and ap hold: a solver freezes its iterate with it when ap
// turned out to be NaN, without a look at the scalar.
template <class T>
void cg_update_rows(const CgUpdateArgs<T>& a, int64_t begin, int64_t end, double dots[2]) {
  const bool frozen = a.alpha == T(0);
  LaneSum rr;
  LaneSum rz;
  for (int64_t row = begin; row < end; ++row) {
    const T inverse = a.inverse == nullptr ? T(1) : a.inverse[row];
    for_lanes(row * a.d, (row + 1) * a.d, [&](int64_t k, int lane) {
      T r = a.r[k];
      if (!frozen) {
        a.x[k] += a.alpha * a.p[k];
        r -= a.alpha * a.ap[k];
        a.r[k] = r;
      }
      rr.add(lane, r, r);
      rz.add(lane, r, inverse * r);
    });
  }
  dots[0] = rr.total();
  dots[1] = rz.total();
}

// p = M r + beta p on rows [begin, end).
template <class T>
void cg_direction_rows(const CgDirectionArgs<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T inverse = a.inverse == nullptr ? T(1) : a.inverse[row];
    for (int64_t k = row * a.d; k < (row + 1) * a.d; ++k) {
      a.p[k] = inverse * a.r[k] + a.beta * a.p[k];
    }
  }
}

}  // namespace
