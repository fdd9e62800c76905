// Twin of cqa/kernels/outer_sums.py.
#include "tensors.h"

namespace cqa {

// out = scale · xᵀ · s, part by part      x (M, N), s (M, K), out (rows, R)
// parts (n, 4) int64: first column of x and their end, first column of s, first element of `out`
void outer_sums(Tensor x, Tensor s, Tensor out, Tensor parts, double scale) {
  const int64_t m = x.size(0), rank = out.size(1), across = n_threads();
  expect_rows(x, "x", {m, ANY});
  expect_rows(s, "s", {m, ANY});
  STD_TORCH_CHECK(parts.is_contiguous() && out.is_contiguous(), "expected contiguous parts and out");
  expect(parts, "parts", {ANY, 4});
  for (int64_t i = 0; i < parts.size(0); i++) {
    const int64_t* p = parts.const_data_ptr<int64_t>() + 4 * i;
    STD_TORCH_CHECK(0 <= p[0] && p[0] <= p[1] && p[1] <= x.size(1) && 0 <= p[2] &&
                        p[2] + rank <= s.size(1) && 0 <= p[3] &&
                        p[3] + (p[1] - p[0]) * rank <= out.numel(),
                    "expected parts within x, s and out");
  }
  const Matrix left = row_matrix(x), right = row_matrix(s);
  float* to = out.mutable_data_ptr<float>();
  parallel_for(parts.size(0) * across, [&](int64_t task) {
    const int64_t* p = parts.const_data_ptr<int64_t>() + task / across * 4;
    const int64_t first = p[0], stop = p[1], s_column = p[2];
    float* c = to + p[3];
    const Range rows = part(stop - first, best_kernel().rows, task % across, across);
    const auto take_s = [&](int64_t k, int64_t k_size, int64_t column, int64_t n, float* panels) {
      pack_b(right, k, k_size, s_column + column, n, panels);
    };
    multiply_range(rows, {0, rank}, m, {left.at(0, first), 1, left.row_stride}, take_s,
                   {c, rank, nullptr, 0});
    for (int64_t i = rows.begin * rank; i < rows.end * rank; i++) c[i] *= static_cast<float>(scale);
  });
}

}  // namespace cqa

STABLE_TORCH_LIBRARY_FRAGMENT(cqa, m) {
  m.def("outer_sums(Tensor x, Tensor s, Tensor(a!) out, Tensor parts, float scale) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(cqa, CPU, m) { m.impl("outer_sums", TORCH_BOX(&cqa::outer_sums)); }
