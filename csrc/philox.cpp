// Twin of cqa/kernels/philox.py.
#include "philox.h"

#include "tensors.h"

namespace cqa {
namespace {

constexpr int64_t GROUP = 64;  // lanes of eight counters
constexpr int64_t CHUNK = 576;  // lanes made before they are used; whole threes of groups

// Lanes from `counter` on, in whole groups.
CQA_INLINE void fill_lanes(const Stream& stream, uint64_t counter, int64_t n, uint16_t* to) {
  int64_t j = 0;
  for (; j + 2 * GROUP < n; j += 3 * GROUP, counter += 24)
    philox<3>(stream, counter, reinterpret_cast<uint32_t*>(to + j));
  for (; j < n; j += GROUP, counter += 8)
    philox<1>(stream, counter, reinterpret_cast<uint32_t*>(to + j));
}

// to = (add ? to : 0) + (lane >= threshold ? from : 0)
template <bool add>
CQA_INLINE void select(const uint16_t* lanes, uint16_t threshold, int64_t n, const float* from,
                       float* to) {
  using Floats = V<float, 16>;
  using Bits = V<int32_t, 16>;
  int64_t j = 0;
  for (; j + 16 <= n; j += 16) {
    const Bits lane = __builtin_convertvector(load<V<uint16_t, 16>>(lanes + j), Bits);
    const Bits kept = load<Bits>(from + j) & (lane >= int32_t{threshold});
    Floats value;
    std::memcpy(&value, &kept, sizeof value);
    store(to + j, add ? load<Floats>(to + j) + value : value);
  }
  for (; j < n; j++) to[j] = (add ? to[j] : 0.0f) + (lanes[j] >= threshold ? from[j] : 0.0f);
}

template <bool add>
CQA_INLINE void select_row(const Stream& stream, uint64_t counter, uint16_t threshold, int64_t n,
                           const float* from, float* to) {
  alignas(uint32_t) uint16_t lanes[CHUNK];
  for (int64_t j = 0; j < n; j += CHUNK, counter += CHUNK / 8) {
    const int64_t size = std::min(CHUNK, n - j);
    fill_lanes(stream, counter, size, lanes);
    select<add>(lanes, threshold, size, from + j, to + j);
  }
}

CQA_CLONES void keep_or_zero(const Stream& stream, uint64_t counter, uint16_t threshold, int64_t n,
                             const float* from, float* to) {
  select_row<false>(stream, counter, threshold, n, from, to);
}

CQA_CLONES void add_kept(const Stream& stream, uint64_t counter, uint16_t threshold, int64_t n,
                         const float* from, float* to) {
  select_row<true>(stream, counter, threshold, n, from, to);
}

CQA_CLONES void fill_words(const Stream& stream, uint64_t counter, int64_t n, int32_t* to) {
  uint32_t words[32];
  for (int64_t i = 0; i < n; i += 8, counter += 8) {
    philox<1>(stream, counter, words);
    std::memcpy(to + 4 * i, words, std::min<int64_t>(8, n - i) * 4 * sizeof(uint32_t));
  }
}

}  // namespace

void Mask::apply(int64_t row, int64_t column, int64_t n, const float* from, float* to) const {
  keep_or_zero(stream, rows[row] * counters_per_row + column / 8, threshold, n, from, to);
}

void Mask::add(int64_t row, int64_t column, int64_t n, const float* from, float* to) const {
  add_kept(stream, rows[row] * counters_per_row + column / 8, threshold, n, from, to);
}

// The words of `out.size(1) / 4` counters a row.
void philox_words(int64_t seed, int64_t step, int64_t stream, Tensor rows, Tensor out) {
  const Stream words = stream_of(seed, step, stream);
  const int64_t calls = out.size(1) / 4;
  expect_rows(rows, "rows", {out.size(0)});
  STD_TORCH_CHECK(out.is_contiguous(), "expected a contiguous out");
  const int64_t* row = rows.const_data_ptr<int64_t>();
  int32_t* to = out.mutable_data_ptr<int32_t>();
  parallel_for(rows.size(0), [&](int64_t i) {
    fill_words(words, row[i] * calls, calls, to + i * 4 * calls);
  });
}

}  // namespace cqa

STABLE_TORCH_LIBRARY_FRAGMENT(cqa, m) {
  m.def("philox_words(int seed, int step, int stream, Tensor rows, Tensor(a!) out) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(cqa, CPU, m) { m.impl("philox_words", TORCH_BOX(&cqa::philox_words)); }
