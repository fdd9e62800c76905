// Vectors of fixed width, and functions compiled once per instruction set.
//
// V<T, N> is the compilers' own vector type: the same source gives AVX-512, AVX2 or NEON code, and
// the same order of operations on each. Everything that touches one is forced inline, so that it is
// compiled for the instruction set of the function that uses it.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#define CQA_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__linux__)
// One copy each, chosen by the loader. Lambdas and calls that are not inlined stay at the baseline.
#define CQA_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CQA_CLONES
#endif

namespace cqa {

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * N)));
};
template <class T, int N>
using V = typename VectorOf<T, N>::type;

template <class Vec, class T>
CQA_INLINE Vec load(const T* from) {
  Vec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class Vec, class T>
CQA_INLINE void store(T* to, const Vec& v) {
  std::memcpy(to, &v, sizeof v);
}

// A number as it is stored: the upper half of the fp32 number that it stands for.
struct Bf16 {
  uint16_t bits;
};

CQA_INLINE float widen(float x) { return x; }

CQA_INLINE float widen(Bf16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

CQA_INLINE V<float, 8> load_floats(const float* from) { return load<V<float, 8>>(from); }

CQA_INLINE V<float, 8> load_floats(const Bf16* from) {
  using Bits = V<uint32_t, 8>;
  const Bits bits = __builtin_convertvector(load<V<uint16_t, 8>>(from), Bits) << 16;
  return load<V<float, 8>>(&bits);
}

using Floats = V<float, 16>;
constexpr float INF = std::numeric_limits<float>::infinity();

// Sixteen elements; of the last few of a row, the missing ones are `fill`.
CQA_INLINE Floats load_part(const float* from, int64_t n, float fill) {
  if (n >= 16) return load<Floats>(from);
  Floats v = Floats{} + fill;
  for (int64_t i = 0; i < n; i++) v[i] = from[i];
  return v;
}

CQA_INLINE void store_part(float* to, const Floats& v, int64_t n) {
  if (n >= 16)
    store(to, v);
  else
    for (int64_t i = 0; i < n; i++) to[i] = v[i];
}

// The greatest of a row; NaNs may be passed over.
CQA_INLINE float max_of(const float* x, int64_t n) {
  Floats top = load_part(x, n, -INF);
  for (int64_t i = 16; i < n; i += 16) {
    const Floats v = load_part(x + i, n - i, -INF);
    top = v > top ? v : top;
  }
  float max = top[0];
  for (int i = 1; i < 16; i++) max = top[i] > max ? top[i] : max;
  return max;
}

// Eight elements as doubles; of the last few of a row, the missing ones are zero.
template <class T>
CQA_INLINE V<double, 8> load_wide(const T* from, int64_t n) {
  V<T, 8> v{};
  if (n >= 8)
    v = load<V<T, 8>>(from);
  else
    for (int64_t i = 0; i < n; i++) v[i] = from[i];
  return __builtin_convertvector(v, V<double, 8>);
}

template <class T>
CQA_INLINE void store_narrow(T* to, const V<double, 8>& wide, int64_t n) {
  const V<T, 8> v = __builtin_convertvector(wide, V<T, 8>);
  if (n >= 8)
    store(to, v);
  else
    for (int64_t i = 0; i < n; i++) to[i] = v[i];
}

template <class Vec>
CQA_INLINE auto sum_of(const Vec& v) {
  auto sum = v[0];
  for (size_t i = 1; i < sizeof v / sizeof v[0]; i++) sum += v[i];
  return sum;
}

// e^x to 1e-11 for x <= 700: what a result that is rounded to fp32 needs.
CQA_INLINE V<double, 8> exp_wide(V<double, 8> x) {
  using Vec = V<double, 8>;
  using Bits = V<uint64_t, 8>;
  x = x < -700.0 ? Vec{} - 700.0 : x;
  x = x > 700.0 ? Vec{} + 700.0 : x;
  const double shift = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to a whole number
  const Vec shifted = x * 1.4426950408889634 + shift;
  const Vec n = shifted - shift;
  const Vec r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10;
  Vec p = Vec{} + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  Bits bits, exponent;
  std::memcpy(&bits, &p, sizeof p);
  std::memcpy(&exponent, &shifted, sizeof shifted);
  bits += exponent << 52;
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

// e^x to about one unit in the last place, for x <= 0; 0 below -87, NaN for NaN.
CQA_INLINE Floats exp_float(Floats x) {
  using Bits = V<uint32_t, 16>;
  const V<int32_t, 16> too_small = x < -87.0f;
  const float shift = 12582912.0f;  // 1.5 * 2^23
  const Floats shifted = x * 1.44269504f + shift;
  const Floats n = shifted - shift;
  const Floats r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Floats p = Floats{} + 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  Bits bits, exponent;
  std::memcpy(&bits, &p, sizeof p);
  std::memcpy(&exponent, &shifted, sizeof shifted);
  bits = too_small ? Bits{} : bits + (exponent << 23);
  std::memcpy(&p, &bits, sizeof p);
  return x == x ? p : x;  // shifted bits turn some of the NaNs into numbers
}

}  // namespace cqa
