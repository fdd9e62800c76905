// Twin of cqa/kernels/shrink.py. A mask is applied while an operand is packed, or to a finished
// tile: a dropped copy of X never exists.
#include "shrink.h"

namespace cqa {

Members members_of(const Tensor& x, const Tensor& lora_a, const Dropout& dropout) {
  expect_rows(x, "x", {ANY, ANY});
  const int64_t n = dropout.streams.size(0), k = x.size(1), threshold = dropout.threshold;
  expect_rows(lora_a, "lora_a", {ANY, k});
  expect_rows(dropout.streams, "streams", {n});
  if (threshold) expect_rows(dropout.rows, "rows", {x.size(0)});
  STD_TORCH_CHECK(n > 0 && lora_a.size(0) % n == 0, "expected the same rank of ", n, " members");
  STD_TORCH_CHECK(0 <= threshold && threshold < 65536, "expected a threshold of 16 bits");
  Members members = {row_matrix(lora_a), lora_a.size(0) / n, n, k, static_cast<float>(dropout.scale),
                     {}};
  const int64_t* streams = dropout.streams.const_data_ptr<int64_t>();
  for (int64_t g = 0; threshold && g < n; g++)
    members.masks.push_back({stream_of(dropout.seed, dropout.step, streams[g]),
                             dropout.rows.const_data_ptr<int64_t>(), (k + 7) / 8,
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

GroupProducts::GroupProducts(const Tensor& x, const std::optional<Tensor>& s,
                             const std::optional<Tensor>& lora_a, const Dropout& dropout,
                             bool transposed) {
  if (!lora_a) return;
  members_ = members_of(x, *lora_a, dropout);
  expect_rows(s.value(), "s or its gradient", {x.size(0), members_.n * members_.rank});
  const int64_t rank = members_.product_rank(), features = members_.features;
  const int64_t k_end = transposed ? features : rank, n = transposed ? rank : features;
  const int64_t size = Packed::size_of(k_end, n);
  storage_.resize(members_.n_products() * size);
  for (int64_t g = 0; g < members_.n_products(); g++) {
    Matrix b = {members_.a.at(g * rank, 0), members_.a.row_stride, 1};
    if (transposed) std::swap(b.row_stride, b.column_stride);
    packed_.emplace_back(b, k_end, n, block_k(k_end), storage_.data() + g * size);
  }
  if (members_.scale != 1)
    for (float& element : storage_) element *= members_.scale;
}

ShrinkForward::ShrinkForward(const Tensor& x, const std::optional<Tensor>& s,
                             const std::optional<Tensor>& lora_a, const Dropout& dropout)
    : GroupProducts(x, s, lora_a, dropout, true), x_(row_matrix(x)) {
  if (lora_a) s_ = own_rows(*s, "s", x.size(0), s->size(1));
}

void ShrinkForward::rows(const Range& rows) const {
  const int64_t rank = members_.product_rank(), padded = Packed::padded(rank);
  const int64_t height = rows.end - rows.begin;
  float* sums = scratch(Scratch::PRODUCT, height * padded);
  for (size_t g = 0; g < packed_.size(); g++) {
    const auto dropped = [&](int64_t row, int64_t n, int64_t k, int64_t k_size, float* to) {
      row += rows.begin;
      if (members_.masks.empty()) return left_tile(x_, row, n, k, k_size, to);
      for (int64_t i = 0; i < n; i++)
        members_.masks[g].apply(row + i, k, k_size, x_.at(row + i, k), to + i * A_STRIDE);
      return LeftTile{to, 0, true};
    };
    packed_[g].multiply(dropped, height, {0, members_.features}, {0, rank}, sums, padded);
    for (int64_t i = 0; i < height; i++)
      std::memcpy(s_.at(rows.begin + i) + g * rank, sums + i * padded, rank * sizeof(float));
  }
}

ShrinkBackward::ShrinkBackward(const Tensor& dx, const std::optional<Tensor>& ds,
                               const std::optional<Tensor>& lora_a, const Dropout& dropout)
    : GroupProducts(dx, ds, lora_a, dropout, false),
      dx_(own_rows(dx, "dx", dx.size(0), dx.size(1))),
      ds_(lora_a ? row_matrix(*ds) : Matrix{}) {}

void ShrinkBackward::rows(const Range& rows) const {
  const int64_t rank = members_.product_rank(), height = rows.end - rows.begin;
  float* product = scratch(Scratch::PRODUCT, height * BLOCK_N);
  for (size_t g = 0; g < packed_.size(); g++) {
    const auto rows_of = [&](int64_t row, int64_t n, int64_t k, int64_t k_size, float* to) {
      return left_tile(ds_, rows.begin + row, n, g * rank + k, k_size, to);
    };
    for (int64_t column = 0; column < members_.features; column += BLOCK_N) {
      const int64_t n = std::min(BLOCK_N, members_.features - column);
      packed_[g].multiply(rows_of, height, {0, rank}, {column, column + n}, product, BLOCK_N);
      for (int64_t i = 0; i < height; i++) {
        const float* from = product + i * BLOCK_N;
        float* to = dx_.at(rows.begin + i) + column;
        if (members_.masks.empty())
          add_row(from, n, to);
        else
          members_.masks[g].add(rows.begin + i, column, n, from, to);
      }
    }
  }
}

// da = dsᵀ · dropped(x) · scale, member by member     ds (M, G * R), x (M, K), da (G * R, K)
void shrink_da(Tensor ds, Tensor x, Tensor da, Tensor streams, Tensor rows, int64_t seed,
               int64_t step, int64_t threshold, double scale) {
  const Members members = members_of(x, da, {streams, rows, seed, step, threshold, scale});
  expect_rows(ds, "ds", {x.size(0), da.size(0)});
  const int64_t rank = members.product_rank(), width = best_kernel().columns;
  const Matrix from = row_matrix(x);
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
