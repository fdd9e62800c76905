// Twin of cqa/kernels/rms_norm.py: in fp64, rounded once.
#include "shrink.h"

namespace cqa {
namespace {

template <class T>
CQA_INLINE double inverse_rms(const T* x, int64_t n, double eps) {
  V<double, 8> sum{};
  for (int64_t i = 0; i < n; i += 8) {
    const auto v = load_wide(x + i, n - i);
    sum += v * v;
  }
  return 1.0 / __builtin_sqrt(sum_of(sum) / n + eps);
}

template <class T>
CQA_INLINE void forward_row(const T* x, const float* weight, int64_t n, double eps, float* to) {
  const double scale = inverse_rms(x, n, eps);
  for (int64_t i = 0; i < n; i += 8)
    store_narrow(to + i, load_wide(x + i, n - i) * scale * load_wide(weight + i, n - i), n - i);
}

CQA_CLONES void forward_row_float(const float* x, const float* weight, int64_t n, double eps,
                                  float* to) {
  forward_row(x, weight, n, eps, to);
}

CQA_CLONES void forward_row_double(const double* x, const float* weight, int64_t n, double eps,
                                   float* to) {
  forward_row(x, weight, n, eps, to);
}

// dx = rstd · (g - n · mean(g · n)), n = x · rstd, g = dy · weight
CQA_CLONES void backward_row(const float* dy, const float* x, const float* weight, int64_t n,
                             double eps, float* dx) {
  const double scale = inverse_rms(x, n, eps);
  V<double, 8> dot{};
  for (int64_t i = 0; i < n; i += 8)
    dot += load_wide(dy + i, n - i) * load_wide(weight + i, n - i) * load_wide(x + i, n - i);
  const double mean = sum_of(dot) * scale / n;
  for (int64_t i = 0; i < n; i += 8) {
    const auto g = load_wide(dy + i, n - i) * load_wide(weight + i, n - i);
    store_narrow(dx + i, (g - load_wide(x + i, n - i) * (scale * mean)) * scale, n - i);
  }
}

}  // namespace

// out = norm(x) · weight      x (M, K) fp32 or fp64, out (M, K) fp32; rows may be strided
//                             weight (K,) fp32 or bf16
// s = dropped(out) · Aᵀ       (M, G * R), where there is an adapter
void norm_shrink(Tensor x, Tensor weight, double eps, Tensor out, std::optional<Tensor> s,
                 std::optional<Tensor> lora_a, Tensor streams, Tensor rows, int64_t seed,
                 int64_t step, int64_t threshold, double scale) {
  const int64_t m = x.size(0), k = x.size(1), ld_x = x.stride(0);
  expect_rows(x, "x", {m, k});
  expect_rows(weight, "weight", {k});
  const OwnRows to = own_rows(out, "out", m, k);
  const bool wide = x.scalar_type() == torch::headeronly::ScalarType::Double;
  const double* from_double = wide ? x.const_data_ptr<double>() : nullptr;
  const float* from_float = wide ? nullptr : x.const_data_ptr<float>();
  const std::vector<float> w = floats_of(weight);
  const ShrinkForward shrink(out, s, lora_a, {streams, rows, seed, step, threshold, scale});
  parallel_for_bands(m, [&](const Range& r) {
    for (int64_t i = r.begin; i < r.end; i++)
      if (wide)
        forward_row_double(from_double + i * ld_x, w.data(), k, eps, to.at(i));
      else
        forward_row_float(from_float + i * ld_x, w.data(), k, eps, to.at(i));
    shrink.rows(r);
  });
}

// dy += Σ mask ∘ (dS · A), then dx = norm'(dy); dy is overwritten
void norm_shrink_backward(Tensor dy, std::optional<Tensor> ds, std::optional<Tensor> lora_a,
                          Tensor x, Tensor weight, double eps, Tensor dx, Tensor streams,
                          Tensor rows, int64_t seed, int64_t step, int64_t threshold,
                          double scale) {
  const int64_t m = x.size(0), k = x.size(1);
  const OwnRows from = own_rows(dy, "dy", m, k), to = own_rows(dx, "dx", m, k);
  expect_rows(x, "x", {m, k});
  expect_rows(weight, "weight", {k});
  const Matrix forward = row_matrix(x);
  const std::vector<float> w = floats_of(weight);
  const ShrinkBackward shrink(dy, ds, lora_a, {streams, rows, seed, step, threshold, scale});
  parallel_for_bands(m, [&](const Range& r) {
    shrink.rows(r);
    for (int64_t i = r.begin; i < r.end; i++)
      backward_row(from.at(i), forward.at(i, 0), w.data(), k, eps, to.at(i));
  });
}

}  // namespace cqa

STABLE_TORCH_LIBRARY_FRAGMENT(cqa, m) {
  m.def(
      "norm_shrink(Tensor x, Tensor weight, float eps, Tensor(a!) out, Tensor(b!)? s, "
      "Tensor? lora_a, Tensor streams, Tensor rows, int seed, int step, int threshold, "
      "float scale) -> ()");
  m.def(
      "norm_shrink_backward(Tensor(a!) dy, Tensor? ds, Tensor? lora_a, Tensor x, Tensor weight, "
      "float eps, Tensor(b!) dx, Tensor streams, Tensor rows, int seed, int step, int threshold, "
      "float scale) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(cqa, CPU, m) {
  m.impl("norm_shrink", TORCH_BOX(&cqa::norm_shrink));
  m.impl("norm_shrink_backward", TORCH_BOX(&cqa::norm_shrink_backward));
}
