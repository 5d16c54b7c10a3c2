// Loss, residual and curvature of every interaction, equation (2). The scores need two gathers
// per interaction; interactions sorted by user keep one of them in the cache.

namespace {

template <class T, class I>
bool derivatives(const DerivativeArgs<T, I>& a, int64_t begin, int64_t end) {
  for (int64_t e = begin; e < end; ++e) {
    if (!in_range(a.left[e], a.n_nodes) || !in_range(a.right[e], a.n_nodes)) return false;
    const T score = dot(a.d, a.f + int64_t(a.left[e]) * a.d, a.f + int64_t(a.right[e]) * a.d);
    const LossDerivatives<T> l = pointwise_loss(a.loss, score, a.label[e]);
    const T weight = a.weight == nullptr ? T(1) : a.weight[e];
    a.value[e] = weight * l.value;
    a.residual[e] = weight * l.residual;
    a.curvature[e] = weight * l.curvature;
  }
  return true;
}

}  // namespace
