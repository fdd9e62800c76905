// Twin of cqa/kernels/adamw.py: one pass over the flat buffers.
#include <cmath>

#include "tensors.h"

namespace cqa {
namespace {

constexpr int64_t PIECE = 1 << 14;

CQA_CLONES double sum_of_squares(const float* x, int64_t n) {
  V<double, 8> sum{};
  for (int64_t i = 0; i < n; i += 8) {
    const auto v = load_wide(x + i, n - i);
    sum += v * v;
  }
  return sum_of(sum);
}

struct Settings {
  float decay, beta1, beta2, root, rate, eps;
};

CQA_CLONES void update(float* p, const float* grad, float* m, float* v, int64_t n, Settings s) {
  for (int64_t i = 0; i < n; i++) {
    const float g = grad[i];
    m[i] += (g - m[i]) * (1 - s.beta1);
    v[i] = v[i] * s.beta2 + g * g * (1 - s.beta2);
    p[i] = p[i] * s.decay - s.rate * m[i] / (std::sqrt(v[i]) / s.root + s.eps);
  }
}

}  // namespace

// The Euclidean norm; pieces of fixed length, so it does not depend on the threads.
double norm(Tensor x) {
  expect_rows(x, "x", {ANY});
  const int64_t n = x.numel(), pieces = (n + PIECE - 1) / PIECE;
  const float* from = x.const_data_ptr<float>();
  std::vector<double> sums(pieces);
  parallel_for(pieces, [&](int64_t i) {
    sums[i] = sum_of_squares(from + i * PIECE, std::min(PIECE, n - i * PIECE));
  });
  double sum = 0;
  for (const double s : sums) sum += s;
  return std::sqrt(sum);
}

void adamw(Tensor param, Tensor grad, Tensor exp_avg, Tensor exp_avg_sq, double decay, double beta1,
           double beta2, double root, double rate, double eps) {
  const int64_t n = param.numel(), pieces = (n + PIECE - 1) / PIECE;
  for (const Tensor& t : {param, grad, exp_avg, exp_avg_sq}) expect_rows(t, "buffer", {n});
  const Settings settings = {static_cast<float>(decay), static_cast<float>(beta1),
                             static_cast<float>(beta2), static_cast<float>(root),
                             static_cast<float>(rate),  static_cast<float>(eps)};
  float* p = param.mutable_data_ptr<float>();
  const float* g = grad.const_data_ptr<float>();
  float* m = exp_avg.mutable_data_ptr<float>();
  float* v = exp_avg_sq.mutable_data_ptr<float>();
  parallel_for(pieces, [&](int64_t i) {
    const int64_t at = i * PIECE;
    update(p + at, g + at, m + at, v + at, std::min(PIECE, n - at), settings);
  });
}

}  // namespace cqa

STABLE_TORCH_LIBRARY_FRAGMENT(cqa, m) {
  m.def("norm(Tensor x) -> float");
  m.def(
      "adamw(Tensor(a!) param, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
      "float decay, float beta1, float beta2, float root, float rate, float eps) "
      "-> ()");
}
STABLE_TORCH_LIBRARY_IMPL(cqa, CPU, m) {
  m.impl("norm", TORCH_BOX(&cqa::norm));
  m.impl("adamw", TORCH_BOX(&cqa::adamw));
}
