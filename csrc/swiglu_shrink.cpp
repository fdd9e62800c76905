// Twin of cqa/kernels/swiglu_shrink.py: in fp64, rounded once.
#include "shrink.h"

namespace cqa {
namespace {

CQA_CLONES void forward_row(const float* gate, const float* up, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += 8) {
    const auto z = load_wide(gate + i, n - i);
    store_narrow(to + i, z / (exp_wide(-z) + 1.0) * load_wide(up + i, n - i), n - i);
  }
}

// silu'(z) = s + z · s · (1 - s) with s = sigmoid(z)
CQA_CLONES void backward_row(const float* dact, const float* gate, const float* up, int64_t n,
                             float* dgate, float* dup) {
  for (int64_t i = 0; i < n; i += 8) {
    const auto z = load_wide(gate + i, n - i), d = load_wide(dact + i, n - i);
    const auto s = 1.0 / (exp_wide(-z) + 1.0);
    const auto silu = z * s;
    store_narrow(dgate + i, d * load_wide(up + i, n - i) * (s + silu * (1.0 - s)), n - i);
    store_narrow(dup + i, d * silu, n - i);
  }
}

}  // namespace

// out = silu(gate) · up      gate_up (M, 2K), out (M, K)
// s = dropped(out) · Aᵀ      (M, G * R), where there is an adapter
void swiglu_shrink(Tensor gate_up, Tensor out, std::optional<Tensor> s,
                   std::optional<Tensor> lora_a, Tensor streams, Tensor rows, int64_t seed,
                   int64_t step, int64_t threshold, double scale) {
  const int64_t m = out.size(0), k = out.size(1);
  expect_rows(gate_up, "gate_up", {m, 2 * k});
  const Matrix from = row_matrix(gate_up);
  const OwnRows to = own_rows(out, "out", m, k);
  const ShrinkForward shrink(out, s, lora_a, {streams, rows, seed, step, threshold, scale});
  parallel_for_bands(m, [&](const Range& r) {
    for (int64_t i = r.begin; i < r.end; i++)
      forward_row(from.at(i, 0), from.at(i, k), k, to.at(i));
    shrink.rows(r);
  });
}

// dact += Σ mask ∘ (dS · A), then d(gate_up) = swiglu'(dact); dact is overwritten
void swiglu_shrink_backward(Tensor dact, std::optional<Tensor> ds, std::optional<Tensor> lora_a,
                            Tensor gate_up, Tensor out, Tensor streams, Tensor rows, int64_t seed,
                            int64_t step, int64_t threshold, double scale) {
  const int64_t m = dact.size(0), k = dact.size(1);
  expect_rows(gate_up, "gate_up", {m, 2 * k});
  const Matrix forward = row_matrix(gate_up);
  const OwnRows from = own_rows(dact, "dact", m, k), to = own_rows(out, "out", m, 2 * k);
  const ShrinkBackward shrink(dact, ds, lora_a, {streams, rows, seed, step, threshold, scale});
  parallel_for_bands(m, [&](const Range& r) {
    shrink.rows(r);
    for (int64_t i = r.begin; i < r.end; i++)
      backward_row(from.at(i), forward.at(i, 0), forward.at(i, k), k, to.at(i), to.at(i) + k);
  });
}

}  // namespace cqa

STABLE_TORCH_LIBRARY_FRAGMENT(cqa, m) {
  m.def(
      "swiglu_shrink(Tensor gate_up, Tensor(a!) out, Tensor(b!)? s, Tensor? lora_a, "
      "Tensor streams, Tensor rows, int seed, int step, int threshold, float scale) -> ()");
  m.def(
      "swiglu_shrink_backward(Tensor(a!) dact, Tensor? ds, Tensor? lora_a, Tensor gate_up, "
      "Tensor(b!) out, Tensor streams, Tensor rows, int seed, int step, int threshold, "
      "float scale) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(cqa, CPU, m) {
  m.impl("swiglu_shrink", TORCH_BOX(&cqa::swiglu_shrink));
  m.impl("swiglu_shrink_backward", TORCH_BOX(&cqa::swiglu_shrink_backward));
}
