// Every op of the package, on one screen. Shapes: N nodes (users, then items), E interactions,
// 2E adjacency entries, d features. Contracts in csrc/README.md and ifru_ext/ops.py.

#include "ops/registration.h"

IFRU_SCHEMAS(m) {
  // (1) F = P X + diag(ridge) V: x [N, d], alpha [L + 1] float64 on the CPU.
  m.def(
      "propagate(Tensor rowptr, Tensor neighbor, Tensor inv_sqrt_degree, Tensor x, Tensor alpha,"
      " Tensor? ridge=None, Tensor? v=None) -> Tensor");
  m.def(
      "propagate.out(Tensor rowptr, Tensor neighbor, Tensor inv_sqrt_degree, Tensor x,"
      " Tensor alpha, Tensor? ridge, Tensor? v, Tensor(a!) out, Tensor(b!)? scratch) -> ()");
  // (1) in one pass over a stream (see below).
  m.def(
      "propagate_stream(Tensor rowptr, Tensor neighbor, Tensor cuts, int first_row,"
      " Tensor inv_sqrt_degree, Tensor x, Tensor alpha, Tensor? ridge=None, Tensor? v=None)"
      " -> Tensor");
  m.def(
      "propagate_stream.out(Tensor rowptr, Tensor neighbor, Tensor cuts, int first_row,"
      " Tensor inv_sqrt_degree, Tensor x, Tensor alpha, Tensor? ridge, Tensor? v,"
      " Tensor(a!) out, Tensor(b!)? scratch) -> ()");
  // (2) loss, residual and curvature of each interaction (left, right): three tensors [E].
  m.def(
      "pointwise_derivatives(Tensor left, Tensor right, Tensor f, Tensor label, Tensor? weight,"
      " int loss) -> (Tensor, Tensor, Tensor)");
  // A stream: rowptr [B, R + 1], neighbor [E], cuts [C + 1]; rows are nodes from first_row on.
  // (5) G + diag(ridge) F: residual [E] in stream order.
  m.def(
      "pointwise_gradient(Tensor rowptr, Tensor neighbor, Tensor cuts, int first_row,"
      " Tensor residual, Tensor f, Tensor? ridge=None) -> Tensor");
  // (6) H_F Z + diag(ridge) Z: the exact Hessian; z [N, d] or [k, N, d].
  m.def(
      "pointwise_hvp(Tensor rowptr, Tensor neighbor, Tensor cuts, int first_row, Tensor residual,"
      " Tensor curvature, Tensor f, Tensor z, Tensor? ridge=None) -> Tensor");
  m.def(
      "pointwise_hvp.out(Tensor rowptr, Tensor neighbor, Tensor cuts, int first_row,"
      " Tensor residual, Tensor curvature, Tensor f, Tensor z, Tensor? ridge, Tensor(a!) out)"
      " -> ()");
  // (6) without the residual terms: the Gauss-Newton product.
  m.def(
      "pointwise_ggn(Tensor rowptr, Tensor neighbor, Tensor cuts, int first_row, Tensor curvature,"
      " Tensor f, Tensor z, Tensor? ridge=None) -> Tensor");
  m.def(
      "pointwise_ggn.out(Tensor rowptr, Tensor neighbor, Tensor cuts, int first_row,"
      " Tensor curvature, Tensor f, Tensor z, Tensor? ridge, Tensor(a!) out) -> ()");
  // (6) on rows S of a slice: rowptr [S + 1], rows [S], neighbor and local [entries], z [S, d].
  m.def(
      "restricted_hvp(Tensor rowptr, Tensor rows, Tensor neighbor, Tensor local, Tensor residual,"
      " Tensor curvature, Tensor f, Tensor z, Tensor? ridge=None) -> Tensor");
  m.def(
      "restricted_ggn(Tensor rowptr, Tensor rows, Tensor neighbor, Tensor local, Tensor curvature,"
      " Tensor f, Tensor z, Tensor? ridge=None) -> Tensor");

  // (7) with v_e = f_neighbor - f_other (-1: zero): sums of curvature v o v, [R, d], and of
  // curvature v v^T, [R, d, d], over the entries of each row, plus the ridge [R].
  m.def(
      "ggn_diagonal(Tensor rowptr, Tensor neighbor, Tensor? other, Tensor curvature, Tensor f,"
      " Tensor? ridge=None) -> Tensor");
  m.def(
      "ggn_blocks(Tensor rowptr, Tensor neighbor, Tensor? other, Tensor curvature, Tensor f,"
      " Tensor? ridge=None) -> Tensor");
  // (3) of each triple (user, positive, negative), T of them: three tensors [T].
  m.def(
      "pairwise_derivatives(Tensor user, Tensor positive, Tensor negative, Tensor f,"
      " Tensor? weight=None) -> (Tensor, Tensor, Tensor)");
  // (5) and (6) for (3). Triples by node: rowptr [N + 1], neighbor and other [3T], triple [2T];
  // residual and curvature [T] in the order of the users' rows.
  m.def(
      "pairwise_gradient(Tensor rowptr, Tensor neighbor, Tensor other, Tensor triple,"
      " Tensor residual, Tensor f, Tensor? ridge=None) -> Tensor");
  m.def(
      "pairwise_hvp(Tensor rowptr, Tensor neighbor, Tensor other, Tensor triple, Tensor residual,"
      " Tensor curvature, Tensor f, Tensor z, Tensor? ridge=None) -> Tensor");
  m.def(
      "pairwise_ggn(Tensor rowptr, Tensor neighbor, Tensor other, Tensor triple, Tensor curvature,"
      " Tensor f, Tensor z, Tensor? ridge=None) -> Tensor");

  // Conjugate gradients, one pass each; alpha, beta [] and dots [2] are float64 beside the vectors.
  // <x, y>, a float64 scalar.
  m.def("dot(Tensor x, Tensor y) -> Tensor");
  // x += alpha p, r -= alpha ap; dots = (<r, r>, <r, M r>) with M = diag(inverse).
  m.def(
      "cg_update(Tensor(a!) x, Tensor(b!) r, Tensor p, Tensor ap, Tensor alpha, Tensor? inverse,"
      " Tensor(c!) dots) -> ()");
  // p = M r + beta p.
  m.def("cg_direction(Tensor(a!) p, Tensor r, Tensor beta, Tensor? inverse) -> ()");
}
