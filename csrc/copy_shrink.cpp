// Twin of cqa/kernels/copy_shrink.py.
#include "shrink.h"

namespace cqa {

// out = x, s = dropped(x) · Aᵀ      x, out (M, K), s (M, G * R)
void copy_shrink(Tensor x, Tensor out, Tensor s, Tensor lora_a, Tensor streams, Tensor rows,
                 int64_t seed, int64_t step, int64_t threshold, double scale) {
  const int64_t m = x.size(0), k = x.size(1);
  expect_rows(x, "x", {m, k});
  const Matrix from = row_matrix(x);
  const OwnRows to = own_rows(out, "out", m, k);
  const ShrinkForward shrink(out, s, lora_a, {streams, rows, seed, step, threshold, scale});
  parallel_for_bands(m, [&](const Range& r) {
    for (int64_t i = r.begin; i < r.end; i++)
      std::memcpy(to.at(i), from.at(i, 0), k * sizeof(float));
    shrink.rows(r);
  });
}

// dx += Σ mask ∘ (dS · A)
void copy_shrink_backward(Tensor dx, Tensor ds, Tensor lora_a, Tensor streams, Tensor rows,
                          int64_t seed, int64_t step, int64_t threshold, double scale) {
  const ShrinkBackward shrink(dx, ds, lora_a, {streams, rows, seed, step, threshold, scale});
  parallel_for_bands(dx.size(0), [&](const Range& r) { shrink.rows(r); });
}

}  // namespace cqa

STABLE_TORCH_LIBRARY_FRAGMENT(cqa, m) {
  m.def(
      "copy_shrink(Tensor x, Tensor(a!) out, Tensor(b!) s, Tensor lora_a, Tensor streams, "
      "Tensor rows, int seed, int step, int threshold, float scale) -> ()");
  m.def(
      "copy_shrink_backward(Tensor(a!) dx, Tensor ds, Tensor lora_a, Tensor streams, Tensor rows, "
      "int seed, int step, int threshold, float scale) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(cqa, CPU, m) {
  m.impl("copy_shrink", TORCH_BOX(&cqa::copy_shrink));
  m.impl("copy_shrink_backward", TORCH_BOX(&cqa::copy_shrink_backward));
}
