// Twin of cqa/kernels/shrink.py. A mask is applied while an operand is packed, or to a finished
// tile: a dropped copy of X never exists.
#include "shrink.h"

namespace cqa {

Members members_of(const Tensor& x, const Tensor& lora_a, const Tensor& streams,
                   const Tensor& rows, int64_t seed, int64_t step, int64_t threshold,
                   double scale) {
  expect_rows(x, "x", {ANY, ANY});
  const int64_t n = streams.size(0), k = x.size(1);
  expect_rows(lora_a, "lora_a", {ANY, k});
  expect_rows(streams, "streams", {n});
  if (threshold) expect_rows(rows, "rows", {x.size(0)});
  STD_TORCH_CHECK(n > 0 && lora_a.size(0) % n == 0, "expected the same rank of ", n, " members");
  STD_TORCH_CHECK(0 <= threshold && threshold < 65536, "expected a threshold of 16 bits");
  Members members = {matrix(lora_a), lora_a.size(0) / n, n, k, static_cast<float>(scale), {}};
  for (int64_t g = 0; threshold && g < n; g++)
    members.masks.push_back({stream_of(seed, step, streams.const_data_ptr<int64_t>()[g]),
                             rows.const_data_ptr<int64_t>(), (k + 7) / 8,
                             static_cast<uint16_t>(threshold)});
  return members;
}

namespace {

CQA_CLONES void add_row(const float* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i++) to[i] += from[i];
}

CQA_CLONES void scale_row(float by, int64_t n, float* row) {
  for (int64_t i = 0; i < n; i++) row[i] *= by;
}

}  // namespace

PackedMembers::PackedMembers(Members members, bool turned) : members_(std::move(members)) {
  const int64_t rank = members_.product_rank(), features = members_.features;
  const int64_t k_end = turned ? features : rank, n = turned ? rank : features;
  const int64_t size = Packed::size_of(k_end, n);
  storage_.resize(members_.n_products() * size);
  for (int64_t g = 0; g < members_.n_products(); g++) {
    Matrix b = {members_.a.at(g * rank, 0), members_.a.row_stride, 1};
    if (turned) std::swap(b.row_stride, b.column_stride);
    packed_.emplace_back(b, k_end, n, block_k(k_end), storage_.data() + g * size);
  }
  if (members_.scale != 1)
    for (float& element : storage_) element *= members_.scale;
}

ShrinkForward::ShrinkForward(Members members, const Tensor& x, const Tensor& s)
    : PackedMembers(std::move(members), true),
      x_(x.const_data_ptr<float>()),
      s_(s.mutable_data_ptr<float>()),
      ld_x_(x.stride(0)),
      ld_s_(s.stride(0)) {
  expect_own_rows(s, "s", x.size(0), members_.n * members_.rank);
}

void ShrinkForward::rows(const Range& rows) const {
  const int64_t rank = members_.product_rank(), padded = Packed::padded(rank);
  const int64_t first = rows.begin, height = rows.end - first;
  const Matrix x = {x_ + first * ld_x_, ld_x_, 1};
  float* sums = scratch(3, height * padded);
  for (int64_t g = 0; g < members_.n_products(); g++) {
    const auto dropped = [&](int64_t row, int64_t n, int64_t k, int64_t k_size, float* to) {
      if (members_.masks.empty()) return left_tile(x, row, n, k, k_size, to);
      for (int64_t i = 0; i < n; i++)
        members_.masks[g].apply(first + row + i, k, k_size, x.at(row + i, k), to + i * A_STRIDE);
      return LeftTile{to, 0, true};
    };
    packed_[g].multiply(dropped, height, {0, members_.features}, {0, rank}, sums, padded);
    for (int64_t i = 0; i < height; i++)
      std::memcpy(s_ + (first + i) * ld_s_ + g * rank, sums + i * padded, rank * sizeof(float));
  }
}

ShrinkBackward::ShrinkBackward(Members members, const Tensor& dx, const Tensor& ds)
    : PackedMembers(std::move(members), false),
      dx_(dx.mutable_data_ptr<float>()),
      ds_(ds.const_data_ptr<float>()),
      ld_dx_(dx.stride(0)),
      ld_ds_(ds.stride(0)) {
  expect_own_rows(dx, "dx", dx.size(0), members_.features);
  expect_rows(ds, "ds", {dx.size(0), members_.n * members_.rank});
}

void ShrinkBackward::rows(const Range& rows) const {
  const int64_t rank = members_.product_rank(), first = rows.begin, height = rows.end - first;
  float* product = scratch(3, height * BLOCK_N);
  for (int64_t g = 0; g < members_.n_products(); g++) {
    const Matrix left = {ds_ + first * ld_ds_ + g * rank, ld_ds_, 1};
    const auto rows_of = [&](auto... where) { return left_tile(left, where...); };
    for (int64_t column = 0; column < members_.features; column += BLOCK_N) {
      const int64_t n = std::min(BLOCK_N, members_.features - column);
      packed_[g].multiply(rows_of, height, {0, rank}, {column, column + n}, product - column,
                          BLOCK_N);
      for (int64_t i = 0; i < height; i++) {
        const float* from = product + i * BLOCK_N;
        float* to = dx_ + (first + i) * ld_dx_ + column;
        if (members_.masks.empty())
          add_row(from, n, to);
        else
          members_.masks[g].add(first + i, column, n, from, to);
      }
    }
  }
}

// da = dsᵀ · dropped(x) · scale, member by member     ds (M, G * R), x (M, K), da (G * R, K)
void shrink_da(Tensor ds, Tensor x, Tensor da, Tensor streams, Tensor rows, int64_t seed,
               int64_t step, int64_t threshold, double scale) {
  const Members members = members_of(x, da, streams, rows, seed, step, threshold, scale);
  expect_rows(ds, "ds", {x.size(0), da.size(0)});
  const int64_t rank = members.product_rank(), width = best_kernel().columns;
  const Matrix from = matrix(x);
  float* out = da.mutable_data_ptr<float>();
  const int64_t across = n_threads(), ld = da.stride(0);
  parallel_for(members.n_products() * across, [&](int64_t task) {
    const int64_t g = task / across;
    const Range columns = part(members.features, 64, task % across, across);
    const Matrix left = {ds.const_data_ptr<float>() + g * rank, 1, ds.stride(0)};
    const auto drop_b = [&](int64_t row, int64_t n_rows, int64_t column, int64_t n, float* to) {
      if (members.masks.empty()) return pack_b(from, row, n_rows, column, n, to);
      float line[BLOCK_N] = {};
      for (int64_t i = 0; i < n_rows; i++) {
        prefetch(from.at(row + std::min(i + 2, n_rows - 1), column), n);
        members.masks[g].apply(row + i, column, n, from.at(row + i, column), line);
        for (int64_t j = 0; j < n; j += width)
          copy_panel_row(line + j, width, to + j * n_rows + i * width);
      }
    };
    multiply_range({0, rank}, columns, x.size(0), left, drop_b,
                   {out + g * rank * ld, ld, nullptr, 0});
    for (int64_t i = 0; i < rank; i++)
      scale_row(members.scale, columns.end - columns.begin,
                out + (g * rank + i) * ld + columns.begin);
  });
}

}  // namespace cqa

STABLE_TORCH_LIBRARY_FRAGMENT(cqa, m) {
  m.def(
      "shrink_da(Tensor ds, Tensor x, Tensor(a!) da, Tensor streams, Tensor rows, int seed, "
      "int step, int threshold, float scale) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(cqa, CPU, m) { m.impl("shrink_da", TORCH_BOX(&cqa::shrink_da)); }
