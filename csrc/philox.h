// Philox4x32-10, the stream of cqa/kernels/philox.py, eight counters to a vector.
#pragma once

#include "simd.h"

namespace cqa {

struct Stream {
  uint32_t seed_low, seed_high, stream, step;
};

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 says so of what is set just above

// The words of counters [first, first + 8 · GROUPS), in order: 8 · GROUPS x 4. A group's ten rounds
// wait for one another; several groups fill the time.
template <int GROUPS>
CQA_INLINE void philox(const Stream& s, uint64_t first, uint32_t* words) {
  using Vec = V<uint64_t, 8>;
  const Vec low = Vec{} + 0xFFFFFFFFull;
  struct {
    Vec c0, c1, c2, c3;
  } group[GROUPS];
#pragma GCC unroll 4
  for (int g = 0; g < GROUPS; g++) {
    const Vec index = first + 8 * g + Vec{0, 1, 2, 3, 4, 5, 6, 7};
    group[g] = {index & low, index >> 32, Vec{} + uint64_t{s.stream}, Vec{} + uint64_t{s.step}};
  }
  uint32_t k0 = s.seed_low, k1 = s.seed_high;
#pragma GCC unroll 10
  for (int round = 0; round < 10; round++) {
#pragma GCC unroll 4
    for (auto& [c0, c1, c2, c3] : group) {
      const Vec p0 = c0 * 0xD2511F53ull, p2 = c2 * 0xCD9E8D57ull;
      c0 = (p2 >> 32) ^ c1 ^ uint64_t{k0};
      c2 = (p0 >> 32) ^ c3 ^ uint64_t{k1};
      c1 = p2 & low;
      c3 = p0 & low;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const Vec one = {0, 8, 1, 9, 2, 10, 3, 11}, two = {4, 12, 5, 13, 6, 14, 7, 15};
  for (const auto& [c0, c1, c2, c3] : group) {
    const Vec front = c0 | c1 << 32, back = c2 | c3 << 32;
    store(words, __builtin_shuffle(front, back, one));
    store(words + 16, __builtin_shuffle(front, back, two));
    words += 32;
  }
}

#pragma GCC diagnostic pop

// One module's dropout of a pass. Columns of a row share its counters, eight 16-bit lanes to each.
struct Mask {
  Stream stream;
  const int64_t* rows;  // number of each row within the global batch
  int64_t counters_per_row;
  uint16_t threshold;  // lanes below are dropped

  // Of columns [column, column + n) of a row; column is a multiple of 8.
  // to = keep ? from : 0
  void apply(int64_t row, int64_t column, int64_t n, const float* from, float* to) const;

  // to += keep ? from : 0
  void add(int64_t row, int64_t column, int64_t n, const float* from, float* to) const;
};

}  // namespace cqa
