// LoRA's low-rank products with dropout, band by band of rows; twin of cqa/kernels/shrink.py.
#pragma once

#include "tensors.h"

namespace cqa {

constexpr int64_t BAND = 48;  // rows that stay in the cache between two steps of an op

// The dropout of a group's members, as an op is given it.
struct Dropout {
  const Tensor& streams;  // (G,) int64, one a member
  const Tensor& rows;     // (M,) int64, numbers of the rows within the global batch
  int64_t seed, step;
  int64_t threshold;  // lanes of 16 bits below are dropped; 0 is no dropout
  double scale;       // of what is kept
};

// One group's members as the products take them: A of all members stacked, and their masks.
struct Members {
  Matrix a;                 // (G * R, K)
  int64_t rank, n;          // R, G
  int64_t features;         // K
  float scale;              // of what dropout keeps
  std::vector<Mask> masks;  // one a member, none without dropout

  // Without dropout all members are one product.
  int64_t n_products() const { return masks.empty() ? 1 : n; }
  int64_t product_rank() const { return rank * n / n_products(); }
};

// The members that share an input x (M, K), or its gradient; lora_a (G * R, K).
Members members_of(const Tensor& x, const Tensor& lora_a, const Dropout& dropout);

// What both directions share: A as the right factor of the products, packed and scaled once.
// Without an adapter there are no products.
class GroupProducts {
 protected:
  // s (M, G * R): S or its gradient; transposed: the factor is Aᵀ.
  GroupProducts(const Tensor& x, const std::optional<Tensor>& s,
                const std::optional<Tensor>& lora_a, const Dropout& dropout, bool transposed);
  GroupProducts(const GroupProducts&) = delete;  // packed_ points into storage_

  Members members_{};
  std::vector<float> storage_;
  std::vector<Packed> packed_;  // one a product
};

// S = dropped(X) · Aᵀ
class ShrinkForward : GroupProducts {
 public:
  ShrinkForward(const Tensor& x, const std::optional<Tensor>& s,
                const std::optional<Tensor>& lora_a, const Dropout& dropout);

  // Writes these rows of S.
  void rows(const Range& rows) const;

 private:
  Matrix x_;
  OwnRows s_{};
};

// dX += Σ mask ∘ (dS · A)
class ShrinkBackward : GroupProducts {
 public:
  ShrinkBackward(const Tensor& dx, const std::optional<Tensor>& ds,
                 const std::optional<Tensor>& lora_a, const Dropout& dropout);

  // Adds to these rows of dX.
  void rows(const Range& rows) const;

 private:
  OwnRows dx_;
  Matrix ds_;
};

// Calls f(rows) for every band of m rows, split evenly over the threads.
template <class F>
void parallel_for_bands(int64_t m, const F& f) {
  parallel_for((m + BAND - 1) / BAND, [&](int64_t i) {
    f(Range{i * BAND, std::min(m, (i + 1) * BAND)});
  });
}

}  // namespace cqa
