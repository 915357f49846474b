// Attention within one window, one head: a handful of queries at a time against all keys, logits never leave the cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "scratch.h"
#include "vectors.h"

namespace swindow {

// Queries at a time, and vectors of keys: their product are accumulators, which must fit into registers.
#if SWINDOW_REGISTERS == 32
constexpr int64_t QUERIES = 7, KEY_VECTORS = 4;
#else
constexpr int64_t QUERIES = 6, KEY_VECTORS = 2;
#endif
constexpr int64_t KEYS = KEY_VECTORS * LANES;  // tokens are padded to a multiple of this

struct Windows {
  int64_t images, height, width;  // of the map as it is, windows may reach over its right and lower border
  int64_t heads, dim;
  int64_t window_height, window_width, shift_y, shift_x;

  int64_t rows() const { return (height + window_height - 1) / window_height; }
  int64_t columns() const { return (width + window_width - 1) / window_width; }
  int64_t tokens() const { return window_height * window_width; }
  int64_t padded_tokens() const { return round_up(tokens(), KEYS); }
  int64_t channels() const { return heads * dim; }
  int64_t each() const { return rows() * columns(); }
};

// Where a window's tokens lie in their map, -1 for those that are padding, and which region each belongs to.
struct Places {
  int64_t* offset;
  int32_t* region;  // padded_tokens() of them; -1 behind the last token
  bool one_region;
};

INLINE int32_t region_of(int64_t at, int64_t side, int64_t window, int64_t shift) {
  return shift == 0 ? 0 : (at >= side - window) + (at >= side - shift);
}

static void find_places(const Windows& w, int64_t window, Places* places) {
  const int64_t height = w.rows() * w.window_height, width = w.columns() * w.window_width;
  const int64_t top = window / w.columns() * w.window_height, left = window % w.columns() * w.window_width;
  int64_t token = 0;
  places->one_region = true;
  for (int64_t y = top; y < top + w.window_height; y++) {
    const int64_t map_y = y + w.shift_y < height ? y + w.shift_y : y + w.shift_y - height;
    for (int64_t x = left; x < left + w.window_width; x++, token++) {
      const int64_t map_x = x + w.shift_x < width ? x + w.shift_x : x + w.shift_x - width;
      places->offset[token] = map_y < w.height && map_x < w.width ? map_y * w.width + map_x : -1;
      places->region[token] = region_of(y, height, w.window_height, w.shift_y) * 3 + region_of(x, width, w.window_width, w.shift_x);
      places->one_region = places->one_region && places->region[token] == places->region[0];
    }
  }
  for (; token < w.padded_tokens(); token++) places->region[token] = -1;
}

// acc[r][c] = sum over `steps` of left[r, step] * right[step, c]; rows and steps of the left may lie in any order.
template <int64_t R, int64_t C>
INLINE void small_product(const float* left, int64_t row_stride, int64_t step_stride, const float* right, int64_t right_stride,
                          int64_t steps, Vec acc[R][C]) {
  for (int64_t r = 0; r < R; r++)
    for (int64_t c = 0; c < C; c++) acc[r][c] = Vec{};
  for (int64_t k = 0; k < steps; k++) {
    Vec b[C];
    for (int64_t c = 0; c < C; c++) b[c] = load(right + k * right_stride + c * LANES);
    for (int64_t r = 0; r < R; r++) {
      Vec one = splat(left[r * row_stride + k * step_stride]);
      for (int64_t c = 0; c < C; c++) acc[r][c] += one * b[c];
    }
  }
}

#if defined(__AVX512F__)
INLINE void transpose_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_ps(from + i * from_stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; j++) {
      __m512d low = _mm512_castps_pd(b[i + j]), high = _mm512_castps_pd(b[i + j + 2]);
      a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  for (int i = 0; i < 4; i++) {
    b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
    b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
    b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    _mm512_storeu_ps(to + i * to_stride, _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88));
    _mm512_storeu_ps(to + (i + 8) * to_stride, _mm512_shuffle_f32x4(b[i], b[i + 8], 0xdd));
  }
}
#endif

// tokens x dim to dim x tokens.
static void transpose(const float* from, int64_t from_stride, int64_t tokens, int64_t dim, float* to, int64_t to_stride) {
  int64_t whole_tokens = 0, whole_dim = 0;
#if defined(__AVX512F__)
  whole_tokens = tokens / 16 * 16, whole_dim = dim / 16 * 16;
  for (int64_t t = 0; t < whole_tokens; t += 16)
    for (int64_t d = 0; d < whole_dim; d += 16) transpose_square(from + t * from_stride + d, from_stride, to + d * to_stride + t, to_stride);
#endif
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t d = t < whole_tokens ? whole_dim : 0; d < dim; d++) to[d * to_stride + t] = from[t * from_stride + d];
}

// What one head of one window is computed from. Operands are fp32, or bf16 in pairs: the processor multiplies two steps
// at once, so that two neighbours along the axis that is summed over lie together.
template <typename A>
struct Head {
  const A* q;           // tokens x dim
  const A* kt;          // dim x padded tokens, zeros behind the last token
  const A* v;           // tokens x dim
  int64_t q_stride, v_stride;
  const float* factor;  // of each query's logits
  const float* bias;    // tokens x padded tokens, -inf behind the last token
  const Places* places;
  int64_t tokens, padded, dim;
};

// Memory that a head's operands and a few queries' logits take.
template <typename A>
struct HeadScratch {
  A *q, *kt, *v, *weights;
  float *logits, *factor;

  static int64_t bytes(int64_t tokens, int64_t padded, int64_t dim) {
    const int64_t own = Own ? Scratch::bytes<A>(tokens * round_up(dim, 2)) + Scratch::bytes<A>(round_up(tokens, 2) * round_up(dim, LANES)) : 0;
    return own + Scratch::bytes<A>(round_up(dim, 2) * padded) + Scratch::bytes<A>(QUERIES * padded) + Scratch::bytes<float>(QUERIES * padded) +
           Scratch::bytes<float>(tokens);
  }
  HeadScratch(Scratch* scratch, int64_t tokens, int64_t padded, int64_t dim) : q(nullptr), v(nullptr) {
    if (Own) {
      q = scratch->take<A>(tokens * round_up(dim, 2));
      v = scratch->take<A>(round_up(tokens, 2) * round_up(dim, LANES));
    }
    kt = scratch->take<A>(round_up(dim, 2) * padded);
    weights = scratch->take<A>(QUERIES * padded);
    logits = scratch->take<float>(QUERIES * padded);
    factor = scratch->take<float>(tokens);
    if (kt != nullptr) std::memset(static_cast<void*>(kt), 0, round_up(dim, 2) * padded * sizeof(A));
  }

 private:
  static constexpr bool Own = sizeof(A) == 2;  // fp32 queries and values stay where they are
};

INLINE float length(const float* row, int64_t dim) {
  Vec squares{};
  int64_t d = 0;
  for (; d + LANES <= dim; d += LANES) squares += load(row + d) * load(row + d);
  float total = sum(squares);
  for (; d < dim; d++) total += row[d] * row[d];
  return std::sqrt(total);
}

// One over a length; vectors that have none, shorter than `tiny`, become zero.
INLINE float to_divide_by(float length, float tiny) { return length < tiny ? 0.0f : 1.0f / length; }

// Factors of queries; for cosine attention they hold a query's length, and keys are divided by theirs, in place, as by
// `swindow.ops.reference.unit`.
INLINE void find_factors(float* q, float* k, int64_t stride, int64_t tokens, int64_t dim, float scale, bool cosine, float tiny, float* factor) {
  for (int64_t t = 0; t < tokens; t++) {
    factor[t] = scale;
    if (!cosine) continue;
    const float key = to_divide_by(length(k + t * stride, dim), tiny);
    factor[t] *= to_divide_by(length(q + t * stride, dim), tiny);
    for (int64_t d = 0; d < dim; d++) k[t * stride + d] *= key;
  }
}

// A head from fp32 rows of queries, keys and values.
INLINE Head<float> prepare(float* q, float* k, float* v, int64_t stride, int64_t tokens, int64_t padded, int64_t dim, HeadScratch<float>* s) {
  transpose(k, stride, tokens, dim, s->kt, padded);
  return {q, s->kt, v, stride, stride, s->factor, nullptr, nullptr, tokens, padded, dim};
}

#if defined(__AVX512BF16__)
INLINE __m512i halves(__m512 low, __m512 high) {
  const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
  __m512i bits;
  std::memcpy(&bits, &both, sizeof bits);
  return bits;
}

INLINE Head<bfloat16> prepare(float* q, float* k, float* v, int64_t stride, int64_t tokens, int64_t padded, int64_t dim, HeadScratch<bfloat16>* s) {
  const int64_t q_stride = round_up(dim, 2), v_stride = round_up(dim, LANES);
  bfloat16 row[512];
  // Keys: two neighbours of a row are one 32-bit value, and these are transposed.
  float* pairs = reinterpret_cast<float*>(s->kt);
  for (int64_t t = 0; t < tokens; t += 16) {
    alignas(64) float block[16 * 16];
    for (int64_t d = 0; d < dim; d += 32) {
      const int64_t here = std::min<int64_t>(16, tokens - t), left = std::min<int64_t>(32, dim - d);
      for (int64_t i = 0; i < 16; i++) {
        __m512i both = _mm512_setzero_si512();
        if (i < here) {
          const float* from = k + (t + i) * stride + d;
          const __mmask16 low = left >= 16 ? 0xffff : (1 << left) - 1, high = left >= 32 ? 0xffff : left > 16 ? (1 << (left - 16)) - 1 : 0;
          both = halves(_mm512_maskz_loadu_ps(low, from), _mm512_maskz_loadu_ps(high, from + 16));
        }
        std::memcpy(block + i * 16, &both, 64);
      }
      alignas(64) float turned[16 * 16];
      transpose_square(block, 16, turned, 16);
      for (int64_t i = 0; i < std::min<int64_t>(16, (dim - d + 1) / 2); i++) std::memcpy(pairs + (d / 2 + i) * padded + t, turned + i * 16, 64);
    }
  }
  // Values: two neighbouring rows are interleaved.
  alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i interleave = _mm512_load_si512(order);
  for (int64_t t = 0; t < tokens; t += 2) {
    for (int64_t d = 0; d < dim; d += 16) {
      const __mmask16 there = dim - d >= 16 ? 0xffff : (1 << (dim - d)) - 1;
      const __m512 first = _mm512_maskz_loadu_ps(there, v + t * stride + d);
      const __m512 second = t + 1 < tokens ? _mm512_maskz_loadu_ps(there, v + (t + 1) * stride + d) : _mm512_setzero_ps();
      const __m512i both = _mm512_permutexvar_epi16(interleave, halves(first, second));
      std::memcpy(static_cast<void*>(s->v + t * v_stride + 2 * d), &both, 64);
    }
  }
  for (int64_t t = 0; t < tokens; t++) {
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES) store(s->q + t * q_stride + d, load(q + t * stride + d));
    if (d < q_stride) {
      store(row, load_part(q + t * stride + d, dim - d));
      std::memcpy(static_cast<void*>(s->q + t * q_stride + d), row, (q_stride - d) * 2);
    }
  }
  return {s->q, s->kt, s->v, q_stride, v_stride, s->factor, nullptr, nullptr, tokens, padded, dim};
}

// As above with operands in pairs: steps of the left lie side by side, those of the right two by two.
template <int64_t R, int64_t C>
INLINE void small_product(const bfloat16* left, int64_t row_stride, int64_t, const bfloat16* right, int64_t right_stride, int64_t steps,
                          Vec acc[R][C]) {
  __m512 sums[R][C];
  for (int64_t r = 0; r < R; r++)
    for (int64_t c = 0; c < C; c++) sums[r][c] = _mm512_setzero_ps();
  for (int64_t k = 0; k < steps; k += 2) {
    __m512bh b[C];
    for (int64_t c = 0; c < C; c++) std::memcpy(&b[c], right + k * right_stride + c * 2 * LANES, 64);
    for (int64_t r = 0; r < R; r++) {
      int32_t pair;
      std::memcpy(&pair, left + r * row_stride + k, 4);
      const __m512i two = _mm512_set1_epi32(pair);
      __m512bh one;
      std::memcpy(&one, &two, 64);
      for (int64_t c = 0; c < C; c++) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], one, b[c]);
    }
  }
  std::memcpy(acc, sums, sizeof sums);
}
#endif

// Where column `at` of a row of operands begins on the right of a product.
INLINE const float* column(const float* row, int64_t at) { return row + at; }
INLINE const bfloat16* column(const bfloat16* row, int64_t at) { return row + 2 * at; }

// Softmax of R queries' logits, not yet divided by their sums.
template <int64_t R, typename A>
INLINE void weights_of(const Head<A>& h, int64_t first, float* logits, A* weights, float most[R], float total[R]) {
  const Vec never = splat(-std::numeric_limits<float>::infinity());
  Vec highest[R];
  for (int64_t r = 0; r < R; r++) highest[r] = never;
  for (int64_t j = 0; j < h.padded; j += KEYS) {
    Vec acc[R][KEY_VECTORS];
    small_product<R, KEY_VECTORS>(h.q + first * h.q_stride, h.q_stride, 1, column(h.kt, j), h.padded, h.dim, acc);
    for (int64_t r = 0; r < R; r++) {
      const float factor = h.factor[first + r];
      for (int64_t c = 0; c < KEY_VECTORS; c++) {
        const int64_t at = j + c * LANES;
        Vec x = acc[r][c] * factor;
        if (h.bias != nullptr) x += load(h.bias + (first + r) * h.padded + at);
        if (!h.places->one_region) {
          IntVec theirs;
          std::memcpy(&theirs, h.places->region + at, sizeof theirs);
          x = theirs == h.places->region[first + r] ? x : never;
        }
        highest[r] = maximum(highest[r], x);
        store(logits + r * h.padded + at, x);
      }
    }
  }
  for (int64_t r = 0; r < R; r++) {
    most[r] = maximum(highest[r]);
    const Vec top = splat(most[r]);
    Vec sums{};
    for (int64_t j = 0; j < h.padded; j += LANES) {
      const Vec x = exponential(load(logits + r * h.padded + j) - top);
      sums += x;
      store(weights + r * h.padded + j, x);
    }
    total[r] = sum(sums);
  }
}

// Steps of a sum that are added up by themselves: the error of a sum grows with its length.
constexpr int64_t STRETCH = 128;

// R x C vectors of weights times values, `total` tokens of them.
template <int64_t R, int64_t C, typename A>
INLINE void mix(const Head<A>& h, const A* weights, int64_t d, Vec acc[R][C]) {
  small_product<R, C>(weights, h.padded, 1, column(h.v, d), h.v_stride, std::min(h.tokens, STRETCH), acc);
  for (int64_t t = STRETCH; t < h.tokens; t += STRETCH) {
    Vec more[R][C];
    small_product<R, C>(weights + t, h.padded, 1, column(h.v + t * h.v_stride, d), h.v_stride, std::min(h.tokens - t, STRETCH), more);
    for (int64_t r = 0; r < R; r++)
      for (int64_t c = 0; c < C; c++) acc[r][c] += more[r][c];
  }
}

// R queries' results; `finish(row, d, values)` takes LANES of them, of which the last may reach beyond dim.
template <int64_t R, typename A, typename Finish>
INLINE void attend_rows(const Head<A>& h, int64_t first, const HeadScratch<A>& s, Finish finish) {
  float most[R], total[R];
  weights_of<R>(h, first, s.logits, s.weights, most, total);
  for (int64_t d = 0; d < h.dim; d += 2 * LANES) {
    Vec acc[R][2];
    if (d + LANES < h.dim) {
      mix<R, 2>(h, s.weights, d, acc);
    } else {
      Vec narrow[R][1];
      mix<R, 1>(h, s.weights, d, narrow);
      for (int64_t r = 0; r < R; r++) acc[r][0] = narrow[r][0];
    }
    for (int64_t r = 0; r < R; r++) {
      const float inverse = 1.0f / total[r];
      finish(first + r, d, acc[r][0] * inverse);
      if (d + LANES < h.dim) finish(first + r, d + LANES, acc[r][1] * inverse);
    }
  }
}

template <int64_t R, typename A, typename Finish>
static void attend_some(int64_t count, const Head<A>& h, int64_t first, const HeadScratch<A>& s, Finish finish) {
  if constexpr (R > 0) {
    if (count == R) attend_rows<R>(h, first, s, finish);
    else attend_some<R - 1>(count, h, first, s, finish);
  }
}

// All queries, in groups as equal as can be.
template <typename A, typename Finish>
INLINE void attend_window(const Head<A>& h, const HeadScratch<A>& s, Finish finish) {
  const int64_t groups = (h.tokens + QUERIES - 1) / QUERIES, smaller = h.tokens / groups, larger = h.tokens % groups;
  int64_t first = 0;
  for (int64_t group = 0; group < groups; group++) {
    const int64_t count = smaller + (group < larger);
    attend_some<QUERIES>(count, h, first, s, finish);
    first += count;
  }
}

}  // namespace swindow
