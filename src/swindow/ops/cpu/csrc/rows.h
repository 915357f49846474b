// What is done to rows of tokens between products: layer norm and GELU.
#pragma once

#include <cmath>

#include "vectors.h"

namespace swindow {

struct Norm {
  const float* weight;  // null for no norm at all
  const float* bias;
  float eps;
};

INLINE bool any(const Norm& norm) { return norm.weight != nullptr; }

// Layer norm of `channels` values in fp32, in place.
INLINE void normalise(float* row, int64_t channels, const Norm& norm) {
  const int64_t whole = channels / LANES * LANES;
  Vec total{};
  for (int64_t c = 0; c < whole; c += LANES) total += load(row + c);
  if (whole < channels) total += load_part(row + whole, channels - whole);
  const float mean = sum(total) / channels;
  Vec squares{};
  for (int64_t c = 0; c < whole; c += LANES) {
    Vec x = load(row + c) - mean;
    squares += x * x;
  }
  float tail = 0;
  for (int64_t c = whole; c < channels; c++) tail += (row[c] - mean) * (row[c] - mean);
  const float rstd = 1.0f / std::sqrt((sum(squares) + tail) / channels + norm.eps);
  for (int64_t c = 0; c < whole; c += LANES)
    store(row + c, (load(row + c) - mean) * rstd * load(norm.weight + c) + load(norm.bias + c));
  for (int64_t c = whole; c < channels; c++) row[c] = (row[c] - mean) * rstd * norm.weight[c] + norm.bias[c];
}

template <typename From, typename To>
INLINE void copy_row(const From* from, To* to, int64_t channels) {
  int64_t c = 0;
  for (; c + LANES <= channels; c += LANES) store(to + c, load(from + c));
  if (c < channels) store_part(to + c, load_part(from + c, channels - c), channels - c);
}

template <typename To>
INLINE void zero(To* to, int64_t n) {
  std::memset(static_cast<void*>(to), 0, n * sizeof(To));
}

// x times the normal distribution up to x. Its tail beyond |x| is 0.5 / q(|x|)^8, the polynomial q fitted such that the
// largest error of |x| times the tail over [0, 6.4] is least (weighted least squares, weights raised where errors are
// large): 5e-8 for fp32, below what rounding adds; 1.3e-5 for tokens in bf16, whose own steps are 4e-3.
INLINE Vec by_tail(Vec x, Vec q) {
  q = q * q;
  q = q * q;
  q = q * q;
  const Vec tail = 0.5f / q;
  return x * (x < 0.0f ? tail : 1.0f - tail);
}
INLINE Vec gelu(Vec x, float) {
  const Vec z = x < 0.0f ? -x : x;
  Vec q = z * 2.932115747e-06f - 1.674290668e-05f;
  q = q * z + 9.756253425e-05f;
  q = q * z + 1.113968673e-04f;
  q = q * z + 9.806033838e-04f;
  q = q * z + 8.591672529e-03f;
  q = q * z + 4.478878752e-02f;
  q = q * z + 9.973249702e-02f;
  return by_tail(x, q * z + 1.0f);
}
INLINE Vec gelu(Vec x, bfloat16) {
  const Vec z = x < 0.0f ? -x : x;
  Vec q = z * 7.078641088e-04f - 8.183287718e-04f;
  q = q * z + 1.108278112e-02f;
  q = q * z + 4.327919059e-02f;
  q = q * z + 1.000432295e-01f;
  return by_tail(x, q * z + 1.0f);
}

}  // namespace swindow
