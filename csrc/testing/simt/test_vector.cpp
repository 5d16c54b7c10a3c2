// The vector updates of conjugate gradients against plain double loops.
#include <limits>
#include <stdexcept>
#include <vector>

#include "../../kernels/cuda/vector.cuh"
#include "device_array.h"
#include "tests.h"

namespace ifru::test {
namespace {

using simt::DeviceArray;

template <class T>
constexpr double kTolerance = sizeof(T) == 4 ? 1e-5 : 1e-12;

// `shift` elements past an aligned address.
template <class T>
void check_dot(int64_t n, int64_t shift) {
  const auto x = random_values<T>(n + shift, 1);
  const auto y = random_values<T>(n + shift, 2);
  double expected = 0;
  for (int64_t k = shift; k < n + shift; ++k) expected += double(x[k]) * double(y[k]);
  DeviceArray<T> left(x), right(y);
  const auto run = [&](int64_t max_blocks) {
    DeviceArray<double> partial(cuda::n_chunks(n)), out(1);
    cuda::dot(left.data() + shift, right.data() + shift, n, partial.data(), out.data(), nullptr,
              max_blocks);
    return out.host();
  };
  const auto got = run(cuda::kMaxBlocks);
  CHECK(error_of(got, {expected}) < 1e-12);
  CHECK(got == run(1));
}

template <class T>
void check_cg(int64_t n_rows, int64_t d, bool preconditioned, int64_t shift = 0) {
  const int64_t n = n_rows * d;
  const auto start = [&](unsigned seed) { return random_values<T>(n + shift, seed); };
  const auto x = start(1), r = start(2), p = start(3), ap = start(4);
  const auto inverse = random_values<T>(preconditioned ? n_rows : 0, 5);
  std::vector<double> new_x(n), new_r(n), new_p(n), dots(2);
  for (int64_t k = 0; k < n; ++k) {
    const int64_t at = k + shift;
    const double m = preconditioned ? inverse[k / d] : 1.0;
    new_x[k] = x[at] + 0.25 * p[at];
    new_r[k] = r[at] - 0.25 * ap[at];
    new_p[k] = m * new_r[k] - 0.5 * p[at];
    dots[0] += new_r[k] * new_r[k];
    dots[1] += new_r[k] * m * new_r[k];
  }

  const auto run = [&](int64_t max_blocks) {
    DeviceArray<T> x_(x), r_(r), p_(p), ap_(ap), inverse_(inverse);
    DeviceArray<T> poison(std::vector<T>(n + shift, std::numeric_limits<T>::quiet_NaN()));
    DeviceArray<double> partial(2 * cuda::n_row_chunks(n_rows, d)), dots_(2);
    DeviceArray<double> alpha(std::vector<double>{0.25}), beta(std::vector<double>{-0.5});
    DeviceArray<double> zero(std::vector<double>{0.0});
    const T* m = preconditioned ? inverse_.data() : nullptr;
    // alpha = 0 changes nothing, whatever p and ap hold.
    cuda::CgUpdateParams<T> params{x_.data() + shift,
                                   r_.data() + shift,
                                   poison.data() + shift,
                                   poison.data() + shift,
                                   zero.data(),
                                   m,
                                   partial.data(),
                                   n_rows,
                                   d};
    cuda::cg_update(params, dots_.data(), nullptr, max_blocks);
    CHECK(x_.host() == x && r_.host() == r);
    params.p = p_.data() + shift;
    params.ap = ap_.data() + shift;
    params.alpha = alpha.data();
    cuda::cg_update(params, dots_.data(), nullptr, max_blocks);
    cuda::cg_direction(p_.data() + shift, r_.data() + shift, beta.data(), m, n_rows, d, nullptr,
                       max_blocks);
    std::vector<std::vector<double>> results = {dots_.host()};
    for (DeviceArray<T>* vector : {&x_, &r_, &p_}) {
      const auto host = vector->host();
      results.emplace_back(host.begin() + shift, host.end());
    }
    return results;
  };
  const auto got = run(cuda::kMaxBlocks);
  CHECK(error_of(got[0], dots) < kTolerance<T>);
  CHECK(error_of(got[1], new_x) < kTolerance<T>);
  CHECK(error_of(got[2], new_r) < kTolerance<T>);
  CHECK(error_of(got[3], new_p) < kTolerance<T>);
  CHECK(got == run(1));
}

template <class T>
void check_all() {
  for (const int64_t n : {0, 1, 3, 31, 256, 1000, 4096, 4097, 20003}) {
    check_dot<T>(n, 0);
    check_dot<T>(n, 1);
  }
  check_dot<T>(40 * cuda::kChunk, 0);  // more chunks than a warp has lanes
  for (const int64_t d : {1, 7, 16, 48, 64, 100, 5000}) {
    for (const int64_t n_rows : {1, 3, 70}) {
      if (n_rows * d > 50000) continue;
      check_cg<T>(n_rows, d, true);
      check_cg<T>(n_rows, d, false);
    }
  }
  check_cg<T>(300, 64, true);  // several chunks
  check_cg<T>(300, 64, true, 1);
  check_cg<T>(0, 16, true);
  check_cg<T>(16, 0, true);
}

// More columns than 32 bits count are refused, before anything is read.
void check_wide() {
  const auto refused = [](const auto& call) {
    try {
      call();
    } catch (const std::runtime_error&) {
      return true;
    }
    return false;
  };
  cuda::CgUpdateParams<float> params{};
  DeviceArray<double> dots(2);
  params.d = cuda::kMaxColumns;
  CHECK(!refused([&] { cuda::cg_update(params, dots.data(), nullptr); }));
  CHECK(!refused([&] { cuda::cg_direction<float>({}, {}, {}, {}, 0, params.d, nullptr); }));
  ++params.d;
  CHECK(refused([&] { cuda::cg_update(params, dots.data(), nullptr); }));
  CHECK(refused([&] { cuda::cg_direction<float>({}, {}, {}, {}, 0, params.d, nullptr); }));
}

}  // namespace

void test_vector() {
  check_all<float>();
  check_all<double>();
  check_wide();
}

}  // namespace ifru::test
