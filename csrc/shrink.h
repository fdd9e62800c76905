// LoRA's low-rank products with dropout, band by band of rows; twin of cqa/kernels/shrink.py.
#pragma once

#include "tensors.h"

namespace cqa {

constexpr int64_t BAND = 48;  // rows that stay in the cache between two steps of an op

// One group's members as the ops take them: A of all members stacked, and their random streams.
struct Members {
  Matrix a;                 // (G * R, K)
  int64_t rank, n;          // R, G
  int64_t features;         // K
  float scale;              // of what dropout keeps
  std::vector<Mask> masks;  // one each, none without dropout

  // Without dropout all members are one product.
  int64_t n_products() const { return masks.empty() ? 1 : n; }
  int64_t product_rank() const { return rank * n / n_products(); }
};

// streams (G,), rows (M,): int64; threshold 0 is no dropout.
Members members_of(const Tensor& lora_a, const Tensor& streams, const Tensor& rows, int64_t seed,
                   int64_t step, int64_t threshold, double scale);

// S = dropped(X) · Aᵀ, A packed and scaled once.
class ShrinkForward {
 public:
  explicit ShrinkForward(const Members& members);

  // x: the rows from `first`; s likewise, (height, G * R).
  void rows(int64_t first, int64_t height, const float* x, int64_t ld_x, float* s,
            int64_t ld_s) const;

 private:
  const Members& members_;
  std::vector<float> storage_;
  std::vector<Packed> packed_;
};

// dX += Σ mask ∘ (dS · A), A packed and scaled once.
class ShrinkBackward {
 public:
  explicit ShrinkBackward(const Members& members);

  // ds and dx: the rows from `first`.
  void rows(int64_t first, int64_t height, const float* ds, int64_t ld_ds, float* dx,
            int64_t ld_dx) const;

 private:
  const Members& members_;
  std::vector<float> storage_;
  std::vector<Packed> packed_;
};

inline int64_t n_bands(int64_t m) { return (m + BAND - 1) / BAND; }

inline Range band(int64_t m, int64_t i) { return {i * BAND, std::min(m, (i + 1) * BAND)}; }

}  // namespace cqa
