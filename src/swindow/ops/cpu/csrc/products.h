// Matrix products of a few rows with packed weights: C = A * W^T + bias, into fp32.
//
// Weights are packed into panels of NR outputs, each panel K x NR, so that the inner loop reads them in a row. A tile of
// MR x NR results is kept in registers. With AVX-512's bf16 instruction two steps of K are taken at once.
#pragma once

#include <algorithm>

#include "vectors.h"

namespace swindow {

#if SWINDOW_REGISTERS == 32
constexpr int64_t MR = 8, NV = 3;
#else
constexpr int64_t MR = 6, NV = 2;
#endif
constexpr int64_t NR = NV * LANES;

// What the operands of a product are kept in, for tokens in T: bf16 only where the processor multiplies it.
template <typename T> struct OperandOf { typedef float type; };
#if defined(__AVX512BF16__)
template <> struct OperandOf<bfloat16> { typedef bfloat16 type; };
#endif
template <typename T> using Operand = typename OperandOf<T>::type;

// Steps of a sum in one go: the error of a sum grows with its length, and so do the weights between two of its tiles.
constexpr int64_t LONGEST = 384;

// Rows of operands are padded to a multiple of this, with zeros.
constexpr int64_t STEP = 2 * LANES;

struct Panels {
  const void* weights;  // of each panel of NR outputs: inputs (rounded up to an even number) x NR
  const float* bias;    // NR for each panel
  int64_t inputs, outputs;
};

INLINE int64_t even(int64_t n) { return n + (n & 1); }

template <int64_t R>
INLINE void accumulate(const float* a, int64_t a_stride, const float* w, int64_t steps, Vec acc[R][NV]) {
  for (int64_t k = 0; k < steps; k++) {
    Vec b[NV];
    for (int64_t v = 0; v < NV; v++) b[v] = load(w + k * NR + v * LANES);
    for (int64_t r = 0; r < R; r++) {
      Vec one = splat(a[r * a_stride + k]);
      for (int64_t v = 0; v < NV; v++) acc[r][v] += one * b[v];
    }
  }
}

#if defined(__AVX512BF16__)
template <int64_t R>
INLINE void accumulate(const bfloat16* a, int64_t a_stride, const bfloat16* w, int64_t steps, Vec acc[R][NV]) {
  for (int64_t k = 0; k < steps; k += 2) {
    __m512bh b[NV];
    for (int64_t v = 0; v < NV; v++) std::memcpy(&b[v], w + k * NR + v * 2 * LANES, 64);
    for (int64_t r = 0; r < R; r++) {
      int32_t pair;
      std::memcpy(&pair, a + r * a_stride + k, 4);
      __m512i two = _mm512_set1_epi32(pair);
      __m512bh one;
      std::memcpy(&one, &two, 64);
      for (int64_t v = 0; v < NV; v++) {
        __m512 sum;
        std::memcpy(&sum, &acc[r][v], 64);
        sum = _mm512_dpbf16_ps(sum, one, b[v]);
        std::memcpy(&acc[r][v], &sum, 64);
      }
    }
  }
}
#endif

// One panel's columns for R rows; `finish(row, column, value)` takes each vector of results.
template <int64_t R, typename A, typename Start, typename Finish>
INLINE void tile(const A* a, int64_t a_stride, const A* w, int64_t steps, int64_t row, Start start, Finish finish) {
  Vec acc[R][NV];
  for (int64_t r = 0; r < R; r++)
    for (int64_t v = 0; v < NV; v++) acc[r][v] = start(row + r, v * LANES);
  accumulate<R>(a + row * a_stride, a_stride, w, steps, acc);
  for (int64_t r = 0; r < R; r++)
    for (int64_t v = 0; v < NV; v++) finish(row + r, v * LANES, acc[r][v]);
}

template <int64_t R, typename A, typename Start, typename Finish>
INLINE void last_rows(int64_t left, const A* a, int64_t a_stride, const A* w, int64_t steps, int64_t row, Start start, Finish finish) {
  if constexpr (R > 0) {
    if (left == R) tile<R>(a, a_stride, w, steps, row, start, finish);
    else last_rows<R - 1>(left, a, a_stride, w, steps, row, start, finish);
  }
}

// Rows `0 ... rows` by one panel.
template <typename A, typename Start, typename Finish>
INLINE void panel_product(const A* a, int64_t a_stride, int64_t rows, const A* w, int64_t steps, Start start, Finish finish) {
  int64_t row = 0;
  for (; row + MR <= rows; row += MR) tile<MR>(a, a_stride, w, steps, row, start, finish);
  if (row < rows) last_rows<MR - 1>(rows - row, a, a_stride, w, steps, row, start, finish);
}

// Columns [first, last) of a product, in whole panels, into fp32 rows of `c` (column `first` at its start).
template <typename A>
static void product(const A* a, int64_t a_stride, int64_t rows, const Panels& p, int64_t first, int64_t last, float* c, int64_t c_stride) {
  const A* weights = static_cast<const A*>(p.weights);
  const int64_t steps = even(p.inputs);
  for (int64_t n = first; n < last; n += NR) {
    float* to = c + n - first;
    const float* bias = p.bias + n;
    for (int64_t k = 0; k < steps; k += LONGEST) {
      panel_product(a + k, a_stride, rows, weights + n * steps + k * NR, std::min(steps - k, LONGEST),
                    [&](int64_t row, int64_t column) { return k == 0 ? load(bias + column) : load(to + row * c_stride + column); },
                    [&](int64_t row, int64_t column, Vec x) { store(to + row * c_stride + column, x); });
    }
  }
}

}  // namespace swindow
