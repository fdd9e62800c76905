// Twin of cqa/kernels/copy_shrink.py.
#include "shrink.h"

namespace cqa {

// out = x, s = dropped(x) · Aᵀ      x, out (M, K), s (M, G * R)
void copy_shrink(Tensor x, Tensor out, Tensor s, Tensor lora_a, Tensor streams, Tensor rows,
                 int64_t seed, int64_t step, int64_t threshold, double scale) {
  const int64_t m = x.size(0), k = x.size(1), ld = out.stride(0);
  expect_rows(x, "x", {m, k});
  expect_own_rows(out, "out", m, k);
  const ShrinkForward shrink(members_of(out, lora_a, streams, rows, seed, step, threshold, scale),
                             out, s);
  float* to = out.mutable_data_ptr<float>();
  parallel_for_bands(m, [&](const Range& r) {
    for (int64_t i = r.begin; i < r.end; i++)
      std::memcpy(to + i * ld, x.const_data_ptr<float>() + i * x.stride(0), k * sizeof(float));
    shrink.rows(r);
  });
}

// dx += Σ mask ∘ (dS · A)
void copy_shrink_backward(Tensor dx, Tensor ds, Tensor lora_a, Tensor streams, Tensor rows,
                          int64_t seed, int64_t step, int64_t threshold, double scale) {
  const ShrinkBackward shrink(members_of(dx, lora_a, streams, rows, seed, step, threshold, scale),
                              dx, ds);
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
