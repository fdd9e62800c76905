// Twin of cqa/kernels/matmul.py.
#include "gemm.h"
#include "tensors.h"

namespace cqa {

// The right factor b, and what of it is in `tail`: its last rows, or else its last columns.
Weights right_factor(const Tensor& b, const std::optional<Tensor>& tail, int64_t k, int64_t n) {
  const bool below = tail && b.size(0) < k;
  expect(b, "b", {below ? ANY : k, tail && !below ? ANY : n});
  Weights right = weights(b);
  if (!tail) return right;
  expect(*tail, "tail", {below ? k - b.size(0) : k, below ? n : n - b.size(1)});
  right.tail = matrix(*tail);
  (below ? right.tail_row : right.tail_column) = b.size(below ? 0 : 1);
  return right;
}

// out = start + a · b      a (M, K), out, start (M, N) fp32; b (K, N) fp32 or bf16, or its first
// rows or columns, with the rest in `tail`, fp32
void mm(Tensor a, Tensor b, Tensor out, std::optional<Tensor> start, std::optional<Tensor> tail) {
  const int64_t m = a.size(0), k = a.size(1), n = out.size(1);
  expect(a, "a", {m, k});
  expect_own_rows(out, "out", m, n);
  if (start) expect_rows(*start, "start", {m, n});
  const Matrix left = matrix(a);
  const Weights right = right_factor(b, tail, k, n);
  const Target target = {out.mutable_data_ptr<float>(), out.stride(0),
                         start ? start->const_data_ptr<float>() : nullptr,
                         start ? start->stride(0) : 0};
  const Kernel& kernel = best_kernel();
  const int64_t panels = (n + kernel.columns - 1) / kernel.columns;
  const int64_t tiles = (m + kernel.rows - 1) / kernel.rows;
  // The longer side is divided first: a thread packs its own part of that factor, all of the other.
  const int64_t most = std::max<int64_t>(1, std::min(n_threads(), m < n ? panels : tiles));
  const int64_t across = m < n ? most : n_threads() / most;
  const int64_t down = m < n ? n_threads() / most : most;
  parallel_for(across * down, [&](int64_t task) {
    multiply_range(
        part(m, kernel.rows, task / across, down), part(n, kernel.columns, task % across, across),
        k, left, [&](auto... where) { pack_b(right, where...); }, target);
  });
}

}  // namespace cqa

STABLE_TORCH_LIBRARY_FRAGMENT(cqa, m) {
  m.def("mm(Tensor a, Tensor b, Tensor(a!) out, Tensor? start, Tensor? tail=None) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(cqa, CPU, m) { m.impl("mm", TORCH_BOX(&cqa::mm)); }
