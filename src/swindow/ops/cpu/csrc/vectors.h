// Vectors of fp32 as wide as the processor's registers, in the compiler's own vector extensions (GCC and Clang), so
// that one source serves AVX-512, AVX2 and older ones. bf16 is a format in memory: everything is computed in fp32.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#define SWINDOW_LANES 16
#define SWINDOW_REGISTERS 32
#elif defined(__AVX2__)
#define SWINDOW_LANES 8
#define SWINDOW_REGISTERS 16
#else
#define SWINDOW_LANES 4
#define SWINDOW_REGISTERS 32
#endif

namespace swindow {

constexpr int64_t LANES = SWINDOW_LANES;
typedef float Vec __attribute__((vector_size(4 * SWINDOW_LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * SWINDOW_LANES)));
typedef uint32_t UintVec __attribute__((vector_size(4 * SWINDOW_LANES)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * SWINDOW_LANES)));

#define INLINE inline __attribute__((always_inline))

INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

INLINE Vec splat(float x) { return x - Vec{}; }
INLINE IntVec splat(int32_t x) { return x - IntVec{}; }

struct bfloat16 { uint16_t bits; };

INLINE Vec load(const float* p) { Vec v; std::memcpy(&v, p, sizeof v); return v; }
INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

INLINE Vec load(const bfloat16* p) {
  HalfVec h;
  std::memcpy(&h, p, sizeof h);
  UintVec wide = __builtin_convertvector(h, UintVec) << 16;
  Vec v;
  std::memcpy(&v, &wide, sizeof v);
  return v;
}

// Round to nearest, ties to even; a NaN stays one.
INLINE void store(bfloat16* p, Vec v) {
#if defined(__AVX512BF16__)
  __m512 wide;
  std::memcpy(&wide, &v, sizeof wide);
  const __m256bh narrow = _mm512_cvtneps_pbh(wide);
  std::memcpy(p, &narrow, sizeof narrow);
#else
  UintVec u;
  std::memcpy(&u, &v, sizeof u);
  UintVec rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  UintVec quiet = (u >> 16) | 0x40;
  UintVec chosen = v == v ? rounded : quiet;
  HalfVec h = __builtin_convertvector(chosen, HalfVec);
  std::memcpy(p, &h, sizeof h);
#endif
}

INLINE float to_float(float x) { return x; }
INLINE float to_float(bfloat16 x) {
  uint32_t u = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}
INLINE void from_float(float* p, float x) { *p = x; }
INLINE void from_float(bfloat16* p, float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  p->bits = x == x ? (u + 0x7fff + ((u >> 16) & 1)) >> 16 : (u >> 16) | 0x40;
}

// The first n < LANES values of a row, zeros behind them.
template <typename T>
INLINE Vec load_part(const T* p, int64_t n) {
  T padded[LANES] = {};
  std::memcpy(padded, p, n * sizeof(T));
  return load(padded);
}
template <typename T>
INLINE void store_part(T* p, Vec v, int64_t n) {
  T padded[LANES];
  store(padded, v);
  std::memcpy(p, padded, n * sizeof(T));
}

INLINE Vec maximum(Vec a, Vec b) { return a > b ? a : b; }

// GCC before 12 knows but the older name.
#if defined(__clang__)
#define SHUFFLED(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define SHUFFLED(v, ...) __builtin_shuffle(v, IntVec{__VA_ARGS__})
#endif

// Sum and maximum over the lanes: halves are folded onto each other.
template <typename Fold>
INLINE float reduce(Vec v, Fold fold) {
#if SWINDOW_LANES == 16
  Vec other = SHUFFLED(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v = fold(v, other);
  other = SHUFFLED(v, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3);
  v = fold(v, other);
  other = SHUFFLED(v, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1);
  v = fold(v, other);
  other = SHUFFLED(v, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0);
#elif SWINDOW_LANES == 8
  Vec other = SHUFFLED(v, 4, 5, 6, 7, 0, 1, 2, 3);
  v = fold(v, other);
  other = SHUFFLED(v, 2, 3, 0, 1, 2, 3, 0, 1);
  v = fold(v, other);
  other = SHUFFLED(v, 1, 0, 1, 0, 1, 0, 1, 0);
#else
  Vec other = SHUFFLED(v, 2, 3, 0, 1);
  v = fold(v, other);
  other = SHUFFLED(v, 1, 0, 1, 0);
#endif
  return fold(v, other)[0];
}
INLINE float sum(Vec v) {
  return reduce(v, [](Vec a, Vec b) { return a + b; });
}
INLINE float maximum(Vec v) {
  return reduce(v, [](Vec a, Vec b) { return maximum(a, b); });
}

// e^x for x <= 88, to 1 ulp or so; below -87 it is 0. Cody-Waite reduction to |r| <= ln(2)/2, then Taylor-like minimax.
INLINE Vec exponential(Vec x) {
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  Vec shifted = x * 1.44269504088896341f + magic;
  Vec n = shifted - magic;
  Vec r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  UintVec bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = bits << 23;  // the integer's low bits become the exponent's offset
  UintVec value;
  std::memcpy(&value, &p, sizeof value);
  value = value + bits;
  Vec y;
  std::memcpy(&y, &value, sizeof y);
  return x < -87.0f ? Vec{} : y;
}

}  // namespace swindow
