// Twin of cqa/kernels/shrink.py. A mask is applied while an operand is packed, or to a finished tile:
// a dropped copy of X never exists.
#include "shrink.h"

namespace cqa {

Members members_of(const Tensor& lora_a, const Tensor& streams, const Tensor& rows, int64_t seed,
                   int64_t step, int64_t threshold) {
  const int64_t n = streams.size(0), k = lora_a.size(1);
  Members members = {matrix(lora_a), lora_a.size(0) / n, n, k, {}};
  for (int64_t g = 0; threshold && g < n; g++)
    members.masks.push_back({stream_of(seed, step, streams.const_data_ptr<int64_t>()[g]),
                             rows.const_data_ptr<int64_t>(), (k + 7) / 8,
                             static_cast<uint16_t>(threshold)});
  return members;
}

// Without dropout all members share one packed A: the group is a single product.
ShrinkForward::ShrinkForward(const Members& members) : members_(members) {
  const int64_t parts = members.masks.empty() ? 1 : members.n;
  const int64_t rank = members.rank * members.n / parts, width = best_kernel().columns;
  const int64_t padded = (rank + width - 1) / width * width;
  for (int64_t g = 0; g < parts; g++) {
    auto& packed = packed_.emplace_back(members.features * padded);
    const Matrix a_t = {members.a.at(g * rank, 0), members.a.column_stride, members.a.row_stride};
    const int64_t block = block_k(members.features);
    for (int64_t k = 0; k < members.features; k += block)
      pack_b(a_t, k, std::min(block, members.features - k), 0, rank, packed.data() + k * padded);
  }
}

void ShrinkForward::rows(int64_t first, int64_t height, const float* x, int64_t ld_x, float* s,
                         int64_t ld_s) const {
  const Kernel& kernel = best_kernel();
  const int64_t k_end = members_.features, parts = packed_.size(), block = block_k(k_end);
  const int64_t rank = members_.rank * members_.n / parts, padded = packed_[0].size() / k_end;
  float* a = scratch(0, kernel.rows * A_STRIDE);
  float* sums = scratch(3, kernel.rows * padded);
  for (int64_t g = 0; g < parts; g++) {
    for (int64_t m = 0; m < height; m += kernel.rows) {
      const int64_t n_rows = std::min<int64_t>(kernel.rows, height - m);
      for (int64_t k = 0; k < k_end; k += block) {
        const int64_t k_size = std::min(block, k_end - k);
        for (int64_t i = 0; i < n_rows; i++) {
          const float* from = x + (m + i) * ld_x + k;
          if (members_.masks.empty())
            std::memcpy(a + i * A_STRIDE, from, k_size * sizeof(float));
          else
            members_.masks[g].apply(first + m + i, k, k_size, from, a + i * A_STRIDE);
        }
        for (int64_t j = 0; j < padded; j += kernel.columns)
          kernel.run(k_size, a, packed_[g].data() + k * padded + j * k_size, sums + j, padded,
                     k ? sums + j : nullptr, padded);
      }
      for (int64_t i = 0; i < n_rows; i++)
        std::memcpy(s + (m + i) * ld_s + g * rank, sums + i * padded, rank * sizeof(float));
    }
  }
}

void shrink_backward_rows(const Members& members, int64_t first, int64_t height, const float* ds,
                          int64_t ld_ds, float* dx, int64_t ld_dx) {
  const int64_t parts = members.masks.empty() ? 1 : members.n;
  const int64_t rank = members.rank * members.n / parts;
  float* product = scratch(3, BAND * BLOCK_N);
  for (int64_t g = 0; g < parts; g++) {
    const Matrix left = {ds + g * rank, ld_ds, 1};
    const Matrix right = {members.a.at(g * rank, 0), members.a.row_stride, 1};
    const auto take_a = [&](auto... where) { pack_a(left, where...); };
    const auto take_b = [&](auto... where) { pack_b(right, where...); };
    if (members.masks.empty()) {
      multiply_range({0, height}, {0, members.features}, rank, take_a, take_b,
                     {dx, ld_dx, dx, ld_dx});
      continue;
    }
    for (int64_t column = 0; column < members.features; column += BLOCK_N) {
      const int64_t n = std::min(BLOCK_N, members.features - column);
      multiply_range({0, height}, {column, column + n}, rank, take_a, take_b,
                     {product - column, BLOCK_N, nullptr, 0});
      for (int64_t i = 0; i < height; i++)
        members.masks[g].add(first + i, column, n, product + i * BLOCK_N, dx + i * ld_dx + column);
    }
  }
}

// da = dsᵀ · dropped(x) * scale, member by member      ds (M, G * R), x (M, K), da (G * R, K)
void shrink_da(Tensor ds, Tensor x, Tensor da, Tensor streams, Tensor rows, int64_t seed,
               int64_t step, int64_t threshold) {
  const Members members = members_of(da, streams, rows, seed, step, threshold);
  const int64_t parts = members.masks.empty() ? 1 : members.n;
  const int64_t rank = members.rank * members.n / parts, width = best_kernel().columns;
  const Matrix from = matrix(x);
  float* out = da.mutable_data_ptr<float>();
  const int64_t across = n_threads();
  parallel_for(parts * across, [&](int64_t task) {
    const int64_t g = task / across;
    const Matrix left = {ds.const_data_ptr<float>() + g * rank, 1, ds.stride(0)};
    const auto drop_b = [&](int64_t row, int64_t n_rows, int64_t column, int64_t n, float* to) {
      if (members.masks.empty()) return pack_b(from, row, n_rows, column, n, to);
      float line[BLOCK_N] = {};
      for (int64_t i = 0; i < n_rows; i++) {
        members.masks[g].apply(row + i, column, n, from.at(row + i, column), line);
        for (int64_t j = 0; j < n; j += width)
          std::memcpy(to + j * n_rows + i * width, line + j, width * sizeof(float));
      }
    };
    multiply_range({0, rank}, part(members.features, 64, task % across, across), x.size(0),
                   [&](auto... where) { pack_a(left, where...); }, drop_b,
                   {out + g * rank * da.stride(0), da.stride(0), nullptr, 0});
  });
}

}  // namespace cqa

STABLE_TORCH_LIBRARY_FRAGMENT(cqa, m) {
  m.def(
      "shrink_da(Tensor ds, Tensor x, Tensor(a!) da, Tensor streams, Tensor rows, int seed, "
      "int step, int threshold) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(cqa, CPU, m) { m.impl("shrink_da", TORCH_BOX(&cqa::shrink_da)); }
