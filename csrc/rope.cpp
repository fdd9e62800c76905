// Twin of cqa/kernels/rope.py: in fp64, rounded once.
#include "tensors.h"

namespace cqa {
namespace {

// One row: `heads` heads of 2 · half elements, angles shared.
CQA_CLONES void rotate(const float* x, const float* cos, const float* sin, double sign,
                       int64_t heads, int64_t half, float* to) {
  for (int64_t i = 0; i < half; i += 8) {
    const int64_t n = half - i;
    const auto c = load_wide(cos + i, n), s = load_wide(sin + i, n) * sign;
    for (int64_t h = 0; h < heads; h++) {
      const int64_t at = 2 * half * h + i;
      const auto x1 = load_wide(x + at, n), x2 = load_wide(x + at + half, n);
      store_narrow(to + at, x1 * c - x2 * s, n);
      store_narrow(to + at + half, x2 * c + x1 * s, n);
    }
  }
}

}  // namespace

// Rotates the heads of x (M, H, D) into out (M, H, D); both may have strided rows. A sign of -1
// turns back.
void rope(Tensor x, Tensor cos, Tensor sin, Tensor out, double sign) {
  const int64_t m = x.size(0), heads = x.size(1), half = x.size(2) / 2;
  for (const Tensor& t : {x, out}) {
    expect_rows(t, "heads", {m, heads, 2 * half});
    STD_TORCH_CHECK(heads < 2 || t.stride(1) == 2 * half, "expected heads side by side");
  }
  expect_rows(cos, "cos", {m, half});
  expect_rows(sin, "sin", {m, half});
  const float* from = x.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  parallel_for(m, [&](int64_t row) {
    rotate(from + row * x.stride(0), cos.const_data_ptr<float>() + row * cos.stride(0),
           sin.const_data_ptr<float>() + row * sin.stride(0), sign, heads, half,
           to + row * out.stride(0));
  });
}

}  // namespace cqa

STABLE_TORCH_LIBRARY_FRAGMENT(cqa, m) {
  m.def("rope(Tensor x, Tensor cos, Tensor sin, Tensor(a!) out, float sign) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(cqa, CPU, m) { m.impl("rope", TORCH_BOX(&cqa::rope)); }
