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

// The members that share an input x (M, K), or its gradient. lora_a (G * R, K); streams (G,), rows
// (M,): int64; threshold 0 is no dropout.
Members members_of(const Tensor& x, const Tensor& lora_a, const Tensor& streams,
                   const Tensor& rows, int64_t seed, int64_t step, int64_t threshold,
                   double scale);

// A of a group as the right factor of its products, packed and scaled once.
class PackedMembers {
 protected:
  // turned: the factor is Aᵀ.
  PackedMembers(Members members, bool turned);
  PackedMembers(const PackedMembers&) = delete;  // packed_ points into storage_

  Members members_;
  std::vector<float> storage_;
  std::vector<Packed> packed_;  // one a product
};

// S = dropped(X) · Aᵀ
class ShrinkForward : PackedMembers {
 public:
  ShrinkForward(Members members, const Tensor& x, const Tensor& s);

  // Writes these rows of S.
  void rows(const Range& rows) const;

 private:
  const float* x_;
  float* s_;
  int64_t ld_x_, ld_s_;
};

// dX += Σ mask ∘ (dS · A)
class ShrinkBackward : PackedMembers {
 public:
  ShrinkBackward(Members members, const Tensor& dx, const Tensor& ds);

  // Adds to these rows of dX.
  void rows(const Range& rows) const;

 private:
  float* dx_;
  const float* ds_;
  int64_t ld_dx_, ld_ds_;
};

// Calls f(rows) for every band of m rows, split evenly over the threads.
template <class F>
void parallel_for_bands(int64_t m, const F& f) {
  parallel_for((m + BAND - 1) / BAND, [&](int64_t i) {
    f(Range{i * BAND, std::min(m, (i + 1) * BAND)});
  });
}

}  // namespace cqa
