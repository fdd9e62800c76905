// What the ops need of torch's stable tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <vector>

#include "gemm.h"
#include "philox.h"
#include "threads.h"

namespace cqa {

using torch::stable::Tensor;

constexpr int64_t ANY = -1;  // of a size: whatever it is

// Refuses other sizes than an op takes for granted: it would read or write beside the data.
inline void expect(const Tensor& t, const char* name, std::initializer_list<int64_t> sizes) {
  const int64_t n = sizes.size();
  bool fits = t.dim() == n;
  for (int64_t i = 0; fits && i < n; i++)
    fits = sizes.begin()[i] == ANY || sizes.begin()[i] == t.size(i);
  if (fits) return;
  std::ostringstream got, wanted;
  for (int64_t i = 0; i < t.dim(); i++) got << (i ? ", " : "") << t.size(i);
  for (int64_t i = 0; i < n; i++) {
    wanted << (i ? ", " : "");
    sizes.begin()[i] == ANY ? wanted << "any" : wanted << sizes.begin()[i];
  }
  STD_TORCH_CHECK(false, "expected ", name, " of shape (", wanted.str(), "), got (", got.str(), ")");
}

// Rows, the last dimension, must be contiguous too; they may lie apart.
inline void expect_rows(const Tensor& t, const char* name, std::initializer_list<int64_t> sizes) {
  expect(t, name, sizes);
  const int64_t last = t.dim() - 1;
  STD_TORCH_CHECK(t.numel() == 0 || t.size(last) == 1 || t.stride(last) == 1, "expected ", name,
                  " with contiguous rows, got a stride of ", t.stride(last));
}

// Rows that are written must not share memory, as those of an expanded gradient do.
inline void expect_own_rows(const Tensor& t, const char* name, int64_t m, int64_t n) {
  expect_rows(t, name, {m, n});
  STD_TORCH_CHECK(m < 2 || t.stride(0) >= n, "expected ", name, " with rows of its own, got ", n,
                  " columns and a stride of ", t.stride(0));
}

// Refuses an id that is no row of the head.
inline const int64_t* targets_below(int64_t n_ids, const Tensor& target, int64_t m) {
  expect_rows(target, "target", {m});
  const int64_t* t = target.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < m; i++)
    STD_TORCH_CHECK(t[i] >= 0 && t[i] < n_ids, "expected targets below ", n_ids, ", got ", t[i]);
  return t;
}

inline Matrix matrix(const Tensor& t) {
  return {t.const_data_ptr<float>(), t.stride(0), t.stride(1)};
}

// Of contiguous rows: the stride of a single column says nothing.
inline Matrix row_matrix(const Tensor& t) { return {t.const_data_ptr<float>(), t.stride(0), 1}; }

inline bool is_bf16(const Tensor& t) {
  return t.scalar_type() == torch::headeronly::ScalarType::BFloat16;
}

inline const Bf16* bf16_data(const Tensor& t) {
  STD_TORCH_CHECK(is_bf16(t), "expected bf16");
  return static_cast<const Bf16*>(t.const_data_ptr());
}

// A whole matrix of weights, fp32 or bf16, without a tail.
inline Weights weights(const Tensor& t) {
  constexpr int64_t NEVER = std::numeric_limits<int64_t>::max();
  Weights b = {{}, {}, {}, NEVER, NEVER};
  if (is_bf16(t))
    b.bf16 = {bf16_data(t), t.stride(0), t.stride(1)};
  else
    b.fp32 = matrix(t);
  return b;
}

// A vector of weights, fp32 or bf16, as floats.
inline std::vector<float> floats_of(const Tensor& t) {
  std::vector<float> floats(t.numel());
  if (is_bf16(t))
    widen(bf16_data(t), t.numel(), floats.data());
  else
    std::copy_n(t.const_data_ptr<float>(), t.numel(), floats.data());
  return floats;
}

// Rows that are written.
struct OwnRows {
  float* data;
  int64_t stride;

  float* at(int64_t row) const { return data + row * stride; }
};

inline OwnRows own_rows(const Tensor& t, const char* name, int64_t m, int64_t n) {
  expect_own_rows(t, name, m, n);
  return {t.mutable_data_ptr<float>(), t.stride(0)};
}

inline Stream stream_of(int64_t seed, int64_t step, int64_t stream) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
          static_cast<uint32_t>(stream), static_cast<uint32_t>(step)};
}

}  // namespace cqa
