// Loss, residual and curvature of every interaction, equation (2).
// The scores need two gathers per interaction; interactions sorted by user keep one of them in the
// cache. They are made by blocks: what is computed of a block's scores is vector code, and the same
// for a part of a block, so that an interaction's bits do not depend on where it stands.

namespace {

constexpr int kScores = 64;

// Args has value, residual, curvature and weight. score_of(e, score) is false where e has no score,
// loss_of(score, e) is what its derivatives are.
template <class T, class Args, class ScoreOf, class LossOf>
inline bool derivatives_of(const Args& a, int64_t begin, int64_t end, ScoreOf score_of,
                           LossOf loss_of) {
  T score[kScores] = {}, label[kScores] = {}, weight[kScores] = {};
  T value[kScores], residual[kScores], curvature[kScores];
  for (int64_t first = begin; first < end; first += kScores) {
    const int n = int(end - first < kScores ? end - first : kScores);
    for (int k = 0; k < n; ++k) {
      if (!score_of(first + k, score[k], label[k])) return false;
      weight[k] = a.weight == nullptr ? T(1) : a.weight[first + k];
    }
    for (int k = 0; k < kScores; ++k) {
      const LossDerivatives<T> l = loss_of(score[k], label[k]);
      value[k] = weight[k] * l.value;
      residual[k] = weight[k] * l.residual;
      curvature[k] = weight[k] * l.curvature;
    }
    __builtin_memcpy(a.value + first, value, n * sizeof(T));
    __builtin_memcpy(a.residual + first, residual, n * sizeof(T));
    __builtin_memcpy(a.curvature + first, curvature, n * sizeof(T));
  }
  return true;
}

template <class T, class I>
bool derivatives(const DerivativeArgs<T, I>& a, int64_t begin, int64_t end) {
  const auto score_of = [&a](int64_t e, T& score, T& label) {
    if (!in_range(a.left[e], a.n_nodes) || !in_range(a.right[e], a.n_nodes)) return false;
    score = dot(a.d, a.f + int64_t(a.left[e]) * a.d, a.f + int64_t(a.right[e]) * a.d);
    label = a.label[e];
    return true;
  };
  if (a.loss == Loss::kMse) {
    return derivatives_of<T>(a, begin, end, score_of,
                             [](T score, T label) { return squared_error(score, label); });
  }
  return derivatives_of<T>(a, begin, end, score_of,
                           [](T score, T label) { return binary_cross_entropy(score, label); });
}

}  // namespace
