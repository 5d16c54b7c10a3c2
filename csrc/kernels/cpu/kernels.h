// The CPU kernels as seen by the op layer: argument structs and one table of functions per
// instruction set. No torch header, no STL container: the per-ISA units include this file.
//
// Notation of all kernels: N nodes (users first, then items), E interactions, d features.
// The symmetric adjacency lists every interaction twice, once in its user's row and once in its
// item's, so that each output row has one writer and the sums have one order.
#pragma once

#include <cstdint>

#include "../loss_math.h"
#include "../storage.h"

namespace ifru::cpu {

template <class I>
struct Adjacency {
  const int64_t* rowptr;  // [N + 1], non-decreasing, checked by the caller
  const I* neighbor;      // [2E] node ids, checked by the kernels
  int64_t n_nodes;
};

// One Horner step of equation (1): out = left * (alpha * x + s * sum_m scaled_m) + ridge * v.
// `scaled` holds S y of the step before, so that the gather needs no stored values.
template <class T>
struct HornerStep {
  const T* inv_sqrt_degree;  // [N], s
  const T* x;                // [N, d]
  const T* scaled;           // [N, d]
  const T* ridge;            // [N] or null
  const T* v;                // [N, d], read when ridge is not null
  T* out;                    // [N, d]
  T alpha;
  bool scale_output;  // left = s for the inner steps, 1 for the last
  int64_t d;
};

// The step by gathering from both sides.
template <class T, class I>
struct PropagateArgs : HornerStep<T> {
  Adjacency<I> adjacency;
};

// Interactions in the order in which one side's rows stream by: block by block of columns, row by
// row, columns ascending. R rows are the nodes first_row .. first_row + R - 1; columns are the
// nodes of the other side.
template <class I>
struct Stream {
  const int64_t* rowptr;  // [B, R + 1] positions, non-decreasing throughout, checked by the caller
  const I* neighbor;      // [E] columns as node ids, checked by the kernels
  const int64_t* cuts;    // [C + 1] ascending node ids, C a multiple of B; block b owns the columns
                          // [cuts[b C / B], cuts[(b + 1) C / B])
  int64_t n_blocks;
  int64_t n_cuts;
  int64_t n_rows;
  int64_t first_row;
};

// Equation (5): out_n = sum_j residual_j f_m + ridge_n f_n.
// Equation (6): delta_j = <z_n, f_m> + <f_n, z_m>;
// out_n = sum_j (curvature_j delta_j f_m + residual_j z_m) + ridge_n z_n.
// Each interaction contributes to its row and to its column. S is the storage of the features: T,
// or a sixteen-bit type where T is float.
template <class S, class T, class I>
struct StreamArgs {
  Stream<I> stream;
  const T* residual;   // [E] in stream order; not read by the Gauss-Newton product
  const T* curvature;  // [E] in stream order; not read by the gradient
  const S* f;          // [N, d]
  const S* z;          // [N, d], what the ridge multiplies; f itself for the gradient
  const T* ridge;      // [N] or null
  T* out;              // [N, d]
  T* scratch;          // [B, d], used where d has no specialisation
  int64_t d;
};

// One Horner step of equation (1) in one pass over the edges of a stream.
template <class T, class I>
struct PropagateStreamArgs : HornerStep<T> {
  Stream<I> stream;
  T* scratch;  // [B, d], used where d has no specialisation
};

// Equation (6) restricted to the rows S of a slice: n = rows[s] for s in [0, n_rows).
template <class T, class I>
struct RestrictedArgs {
  const int64_t* rowptr;  // [S + 1], non-decreasing, checked by the caller
  const I* rows;          // [S] node ids, checked by the kernel
  const I* neighbor;      // [entries] node ids, checked by the kernel
  const I* local;         // [entries] the neighbour's position in S, negative if outside
  const T* residual;      // [entries], null for the Gauss-Newton product
  const T* curvature;     // [entries]
  const T* f;             // [N, d]
  const T* z;             // [S, d]
  const T* ridge;         // [S] or null
  T* out;                 // [S, d]
  int64_t n_rows;
  int64_t n_nodes;
  int64_t d;
};

// Equation (7): sum over the entries of row n of curvature_e v_e o v_e + ridge_n, or of
// curvature_e v_e v_e^T + ridge_n I, with v_e = f_neighbor - f_other, an id of -1 meaning zero.
template <class T, class I>
struct DiagonalArgs {
  const int64_t* rowptr;  // [R + 1], non-decreasing, checked by the caller
  const I* neighbor;      // [entries], checked by the kernels
  const I* other;         // [entries] or null
  const T* curvature;     // [entries]
  const T* f;             // [N, d]
  const T* ridge;         // [R] or null
  T* out;                 // [R, d] or [R, d, d]
  int64_t n_nodes;
  int64_t d;
};

// Entries whose outer products are added to a block at a time.
constexpr int64_t kBlockEntries = 8;

// Equation (2) for the interactions (left_e, right_e).
template <class T, class I>
struct DerivativeArgs {
  const I* left;    // [E] node ids, checked by the kernel
  const I* right;   // [E]
  const T* f;       // [N, d]
  const T* label;   // [E]
  const T* weight;  // [E] or null
  T* value;         // [E]
  T* residual;      // [E]
  T* curvature;     // [E]
  int64_t n_nodes;
  int64_t d;
  Loss loss;
};

// Triples (user, positive item, negative item) by node, the users' rows first. A user's row holds
// its triples as entries (neighbor = positive, other = negative); an item's row holds (user, -1)
// for each triple in which it is the positive, (-1, user) where it is the negative. So every entry
// stands for v = f_neighbor - f_other with f_{-1} = 0, and entry t < T is triple t.
template <class I>
struct Triples {
  const int64_t* rowptr;  // [N + 1], non-decreasing, with a boundary at T, checked by the caller
  const I* neighbor;      // [3T] node ids or -1, checked by the kernels
  const I* other;         // [3T] node ids or -1, checked by the kernels
  const I* triple;        // [2T] the triple of each entry from T on, checked by the kernels
  int64_t n_triples;
  int64_t n_nodes;
};

// Equation (3): delta_t = <z_u, f_i - f_j> + <f_u, z_i - z_j>, c_t = curvature_t delta_t (for the
// gradient c_t = residual_t and no z), and for each entry of a row, with v of f and y of z:
// out_n = sum (c_t v + residual_t y) + ridge_n z_n.
template <class T, class I>
struct PairwiseArgs {
  Triples<I> triples;
  const T* residual;   // [T]; not read by the Gauss-Newton product
  const T* curvature;  // [T]; not read by the gradient
  const T* f;          // [N, d]
  const T* z;          // [N, d]; f itself for the gradient, where the ridge alone multiplies it
  const T* ridge;      // [N] or null
  T* change;           // [T] c, which the users' rows leave to the items'; not for the gradient
  T* out;              // [N, d]
  int64_t d;
};

// Equation (3) for the triples (user_t, positive_t, negative_t).
template <class T, class I>
struct PairwiseDerivativeArgs {
  const I* user;      // [T] node ids, checked by the kernel
  const I* positive;  // [T]
  const I* negative;  // [T]
  const T* f;         // [N, d]
  const T* weight;    // [T] or null
  T* value;           // [T]
  T* residual;        // [T]
  T* curvature;       // [T]
  int64_t n_nodes;
  int64_t d;
};

// One update of conjugate gradients: x += alpha p, r -= alpha ap.
template <class T>
struct CgUpdateArgs {
  T* x;              // [N, d]
  T* r;              // [N, d]
  const T* p;        // [N, d]
  const T* ap;       // [N, d]
  const T* inverse;  // [N], the diagonal preconditioner M, or null for the identity
  T alpha;
  int64_t d;
};

// p = M r + beta p.
template <class T>
struct CgDirectionArgs {
  T* p;              // [N, d]
  const T* r;        // [N, d]
  const T* inverse;  // [N] or null
  T beta;
  int64_t d;
};

template <class T>
struct VectorKernels {
  double (*dot)(const T* x, const T* y, int64_t begin, int64_t end);
  void (*cg_update)(const CgUpdateArgs<T>&, int64_t begin, int64_t end, double dots[2]);
  void (*cg_direction)(const CgDirectionArgs<T>&, int64_t begin, int64_t end);
};

// A pass over a stream, for each block: `start` for its columns [first, last), then `rows` for
// ascending chunks of rows, each when the blocks before it have passed them, then `finish` for its
// columns. `rows` returns false when it met a column outside the block.
template <class Args>
struct PassKernels {
  void (*start)(const Args&, int64_t first, int64_t last);
  bool (*rows)(const Args&, int64_t block, int64_t begin, int64_t end);
  void (*finish)(const Args&, int64_t first, int64_t last);
};

// The products of equation (6) with features stored as S.
template <class S, class T, class I>
struct ProductKernels {
  PassKernels<StreamArgs<S, T, I>> hvp;
  PassKernels<StreamArgs<S, T, I>> gauss_newton;
};

template <class T, class I>
using PairwiseFn = bool(const PairwiseArgs<T, I>&, int64_t begin, int64_t end);

// The users' rows, all of them before the first of the items' rows.
template <class T, class I>
struct PairwiseKernels {
  PairwiseFn<T, I>* users;
  PairwiseFn<T, I>* items;
};

// Each function works on rows (or interactions) [begin, end) and returns false when it met a node
// id outside [0, N); what it wrote is then not to be used.
template <class T, class I>
struct Kernels {
  bool (*propagate)(const PropagateArgs<T, I>&, int64_t begin, int64_t end);
  PassKernels<PropagateStreamArgs<T, I>> propagate_stream;
  PassKernels<StreamArgs<T, T, I>> gradient;
  ProductKernels<T, T, I> products;
  bool (*restricted_hvp)(const RestrictedArgs<T, I>&, int64_t begin, int64_t end);
  bool (*restricted_gauss_newton)(const RestrictedArgs<T, I>&, int64_t begin, int64_t end);
  bool (*derivatives)(const DerivativeArgs<T, I>&, int64_t begin, int64_t end);
  bool (*diagonal)(const DiagonalArgs<T, I>&, int64_t begin, int64_t end);
  // `scratch` holds d (d + kBlockEntries) numbers.
  bool (*blocks)(const DiagonalArgs<T, I>&, int64_t begin, int64_t end, T* scratch);
  bool (*pairwise_derivatives)(const PairwiseDerivativeArgs<T, I>&, int64_t begin, int64_t end);
  PairwiseKernels<T, I> pairwise_gradient;
  PairwiseKernels<T, I> pairwise_hvp;
  PairwiseKernels<T, I> pairwise_gauss_newton;
};

struct KernelTable {
  Kernels<float, int32_t> f32_i32;
  Kernels<float, int64_t> f32_i64;
  Kernels<double, int32_t> f64_i32;
  Kernels<double, int64_t> f64_i64;
  ProductKernels<BFloat16, float, int32_t> bf16_i32;
  ProductKernels<BFloat16, float, int64_t> bf16_i64;
  ProductKernels<Float16, float, int32_t> f16_i32;
  ProductKernels<Float16, float, int64_t> f16_i64;
  VectorKernels<float> f32;
  VectorKernels<double> f64;
};

extern const KernelTable kBaselineTable;
extern const KernelTable kAvx2Table;
extern const KernelTable kAvx512Table;

// The table of select_isa(), chosen when the library is loaded.
const KernelTable& kernel_table();

template <class T, class I>
const Kernels<T, I>& kernels();

// Of S = T, or of sixteen-bit storage.
template <class S, class T, class I>
const ProductKernels<S, T, I>& product_kernels();

template <class T>
const VectorKernels<T>& vector_kernels();

}  // namespace ifru::cpu
