// Window attention on the un-partitioned map, forward and backward: swindow.ops.attention.window_attention.
//
// A task is one head of one window: queries, keys and values are gathered from the map into a few kilobytes that stay in
// the cache, and what comes of them is written to its place in the map.
#include "attention.h"

#include "products.h"

namespace swindow {

struct Attention {
  Windows windows;
  const float* bias;   // heads x tokens x padded tokens, -inf behind the last token; or null
  const float* scale;  // of each head
  int32_t cosine;
  float tiny;          // a shorter vector has no direction
};

// One of a head's three parts, from the map to fp32 rows.
template <typename T>
static void gather(const T* map, int64_t stride, const Places& places, int64_t tokens, int64_t dim, float* to, int64_t to_stride) {
  for (int64_t t = 0; t < tokens; t++) {
    const T* from = map + places.offset[t] * stride;
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES) store(to + t * to_stride + d, load(from + d));
    if (d < dim) store_part(to + t * to_stride + d, load_part(from + d, dim - d), dim - d);
  }
}
template <typename T>
static void scatter(const float* from, int64_t from_stride, const Places& places, int64_t tokens, int64_t dim, T* map, int64_t stride) {
  for (int64_t t = 0; t < tokens; t++) {
    T* to = map + places.offset[t] * stride;
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES) store(to + d, load(from + t * from_stride + d));
    if (d < dim) store_part(to + d, load_part(from + t * from_stride + d, dim - d), dim - d);
  }
}

// Places of the tasks' windows, found again only when the window changes.
struct Finder {
  const Windows& w;
  Places places;
  int64_t last = -1;
  Finder(const Windows& windows, Scratch* scratch, bool masked) : w(windows), masked_(masked) {
    places.offset = scratch->take<int64_t>(w.tokens());
    places.region = scratch->take<int32_t>(w.padded_tokens());
  }
  static int64_t bytes(const Windows& w) { return Scratch::bytes<int64_t>(w.tokens()) + Scratch::bytes<int32_t>(w.padded_tokens()); }
  const Places* at(int64_t window) {
    if (window != last) find_places(w, window, &places);
    if (masked_) places.one_region = false;  // with no bias to say so, regions tell what lies behind the last token
    last = window;
    return &places;
  }

 private:
  bool masked_;
};

template <typename T>
static bool attend(const Attention& a, const T* qkv, T* out, int threads) {
  typedef Operand<T> A;
  const Windows& w = a.windows;
  const int64_t tokens = w.tokens(), padded = w.padded_tokens(), dim = w.dim, channels = w.channels(), pixels = w.height * w.width;
  const int64_t stride = round_up(dim, LANES);
  const int64_t bytes = Scratch::bytes<float>(tokens * stride) * 3 + HeadScratch<A>::bytes(tokens, padded, dim) + Finder::bytes(w);
  bool failed = false;  // to find memory
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch(bytes, &failed);
    float* q = scratch.take<float>(tokens * stride);
    float* k = scratch.take<float>(tokens * stride);
    float* v = scratch.take<float>(tokens * stride);
    HeadScratch<A> one(&scratch, tokens, padded, dim);
    Finder finder(w, &scratch, a.bias == nullptr);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t task = 0; task < w.images * w.each() * w.heads; task++) {
      if (failed) continue;
      const int64_t head = task % w.heads, window = task / w.heads % w.each(), image = task / w.heads / w.each();
      const Places* places = finder.at(window);
      const T* from = qkv + image * pixels * 3 * channels + head * dim;
      gather(from, 3 * channels, *places, tokens, dim, q, stride);
      gather(from + channels, 3 * channels, *places, tokens, dim, k, stride);
      gather(from + 2 * channels, 3 * channels, *places, tokens, dim, v, stride);
      find_factors(q, k, stride, tokens, dim, a.scale[head], a.cosine, a.tiny, one.factor);
      Head<A> h = prepare(q, k, v, stride, tokens, padded, dim, &one);
      h.bias = a.bias == nullptr ? nullptr : a.bias + head * tokens * padded;
      h.places = places;
      T* to = out + image * pixels * channels + head * dim;
      attend_window(h, one, [&](int64_t row, int64_t d, Vec value) {
        T* here = to + places->offset[row] * channels + d;
        if (dim - d >= LANES) store(here, value);
        else store_part(here, value, dim - d);
      });
    }
  }
  return !failed;
}

// result[r] += sum over steps of left(r, step) * right[step], for R rows of `dim` values, times a factor.
template <int64_t R>
INLINE void gradient_rows(const float* left, int64_t row_stride, int64_t step_stride, const float* right, int64_t right_stride,
                          int64_t steps, int64_t dim, float by, float* to, int64_t to_stride) {
  for (int64_t d = 0; d < dim; d += 2 * LANES) {
    const int64_t vectors = d + LANES < dim ? 2 : 1;
    Vec acc[R][2], narrow[R][1];
    if (vectors == 2) {
      small_product<R, 2>(left, row_stride, step_stride, right + d, right_stride, steps, acc);
    } else {
      small_product<R, 1>(left, row_stride, step_stride, right + d, right_stride, steps, narrow);
      for (int64_t r = 0; r < R; r++) acc[r][0] = narrow[r][0];
    }
    for (int64_t r = 0; r < R; r++)
      for (int64_t c = 0; c < vectors; c++) store(to + r * to_stride + d + c * LANES, acc[r][c] * by);
  }
}
template <int64_t R>
static void some_gradient_rows(int64_t count, const float* left, int64_t row_stride, int64_t step_stride, const float* right,
                               int64_t right_stride, int64_t steps, int64_t dim, float by, float* to, int64_t to_stride) {
  if constexpr (R > 0) {
    if (count == R) gradient_rows<R>(left, row_stride, step_stride, right, right_stride, steps, dim, by, to, to_stride);
    else some_gradient_rows<R - 1>(count, left, row_stride, step_stride, right, right_stride, steps, dim, by, to, to_stride);
  }
}

struct Backward {
  float *q, *k, *v, *g;      // tokens x stride: unit vectors for cosine attention; g is the gradient of the result
  float *kt, *vt;            // dim x padded
  float *p, *ds;             // tokens x padded: weights, and gradients of the logits
  float *result;             // tokens x stride
  float *q_length, *k_length;
  int64_t stride;
};

// R queries' weights and gradients of their logits; returns the sum of logit gradients times raw products.
template <int64_t R>
INLINE float logit_gradients(const Backward& s, int64_t first, int64_t tokens, int64_t padded, int64_t dim, float scale, const float* bias,
                             const Places& places, float* bias_gradient) {
  Head<float> h{s.q, s.kt, s.v, s.stride, s.stride, nullptr, bias, &places, tokens, padded, dim};
  float factors[R], most[R], total[R];
  for (int64_t r = 0; r < R; r++) factors[r] = scale;
  h.factor = factors - first;
  float* p = s.p + first * padded;
  float* ds = s.ds + first * padded;
  weights_of<R>(h, first, p, p, most, total);
  Vec dots[R];
  for (int64_t r = 0; r < R; r++) dots[r] = Vec{};
  for (int64_t j = 0; j < padded; j += KEYS) {
    Vec acc[R][KEY_VECTORS];
    small_product<R, KEY_VECTORS>(s.g + first * s.stride, s.stride, 1, s.vt + j, padded, dim, acc);
    for (int64_t r = 0; r < R; r++) {
      const float inverse = 1.0f / total[r];
      for (int64_t c = 0; c < KEY_VECTORS; c++) {
        const int64_t at = r * padded + j + c * LANES;
        const Vec weight = load(p + at) * inverse;
        store(p + at, weight);
        store(ds + at, acc[r][c]);
        dots[r] += weight * acc[r][c];
      }
    }
  }
  Vec by_products{};
  for (int64_t r = 0; r < R; r++) {
    const float dot = sum(dots[r]);
    for (int64_t j = 0; j < padded; j += LANES) {
      const int64_t at = r * padded + j;
      const Vec x = load(p + at) * (load(ds + at) - dot);
      store(ds + at, x);
      if (bias_gradient != nullptr) {
        float* to = bias_gradient + (first + r) * padded + j;
        store(to, load(to) + x);
      }
    }
  }
  // The scale's gradient wants the products as they were before scaling.
  for (int64_t j = 0; j < padded; j += KEYS) {
    Vec acc[R][KEY_VECTORS];
    small_product<R, KEY_VECTORS>(s.q + first * s.stride, s.stride, 1, s.kt + j, padded, dim, acc);
    for (int64_t r = 0; r < R; r++)
      for (int64_t c = 0; c < KEY_VECTORS; c++) by_products += acc[r][c] * load(ds + r * padded + j + c * LANES);
  }
  return sum(by_products);
}
template <int64_t R>
static float some_logit_gradients(int64_t count, const Backward& s, int64_t first, int64_t tokens, int64_t padded, int64_t dim, float scale,
                                  const float* bias, const Places& places, float* bias_gradient) {
  if constexpr (R > 0) {
    if (count == R) return logit_gradients<R>(s, first, tokens, padded, dim, scale, bias, places, bias_gradient);
    return some_logit_gradients<R - 1>(count, s, first, tokens, padded, dim, scale, bias, places, bias_gradient);
  }
  return 0;
}

INLINE void to_unit(float* rows, int64_t stride, int64_t tokens, int64_t dim, float tiny, float* lengths) {
  for (int64_t t = 0; t < tokens; t++) {
    lengths[t] = length(rows + t * stride, dim);
    const float by = to_divide_by(lengths[t], tiny);
    for (int64_t d = 0; d < dim; d++) rows[t * stride + d] *= by;
  }
}
// From gradients of unit vectors to gradients of what they were made of.
INLINE void through_unit(const float* unit, int64_t stride, int64_t tokens, int64_t dim, float tiny, const float* lengths, float* g) {
  for (int64_t t = 0; t < tokens; t++) {
    float along = 0;
    for (int64_t d = 0; d < dim; d++) along += unit[t * stride + d] * g[t * stride + d];
    const float by = to_divide_by(lengths[t], tiny);
    for (int64_t d = 0; d < dim; d++) g[t * stride + d] = (g[t * stride + d] - unit[t * stride + d] * along) * by;
  }
}

// Gradients of qkv, and each thread's share of those of the bias (heads x tokens x padded) and of the scales.
template <typename T>
static bool attend_backward(const Attention& a, const T* qkv, const T* grad_out, T* grad_qkv, float* bias_shares, double* scale_shares,
                            int threads) {
  const Windows& w = a.windows;
  const int64_t tokens = w.tokens(), padded = w.padded_tokens(), dim = w.dim, channels = w.channels(), pixels = w.height * w.width;
  const int64_t stride = round_up(dim, LANES), groups = (tokens + QUERIES - 1) / QUERIES;
  typedef Scratch S;
  const int64_t bytes = S::bytes<float>(tokens * stride) * 5 + S::bytes<float>(dim * padded) * 2 + S::bytes<float>(tokens * padded) * 2 +
                        S::bytes<float>(tokens) * 2 + Finder::bytes(w);
  const int64_t tasks = w.images * w.each() * w.heads;
  // Shares are by number, not by thread: which thread takes which does not show in the sums.
  bool failed = false;  // to find memory
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int64_t share = 0; share < threads; share++) {
    bool none = false;
    Scratch scratch(bytes, &none);
    if (none) {
#pragma omp atomic write
      failed = true;
      continue;
    }
    Backward s;
    s.stride = stride;
    s.q = scratch.take<float>(tokens * stride);
    s.k = scratch.take<float>(tokens * stride);
    s.v = scratch.take<float>(tokens * stride);
    s.g = scratch.take<float>(tokens * stride);
    s.result = scratch.take<float>(tokens * stride);
    s.kt = scratch.take<float>(dim * padded);
    s.vt = scratch.take<float>(dim * padded);
    s.p = scratch.take<float>(tokens * padded);
    s.ds = scratch.take<float>(tokens * padded);
    s.q_length = scratch.take<float>(tokens);
    s.k_length = scratch.take<float>(tokens);
    Finder finder(w, &scratch, a.bias == nullptr);
    std::memset(s.kt, 0, dim * padded * sizeof(float));
    std::memset(s.vt, 0, dim * padded * sizeof(float));
    for (int64_t task = tasks * share / threads; task < tasks * (share + 1) / threads; task++) {
      const int64_t head = task % w.heads, window = task / w.heads % w.each(), image = task / w.heads / w.each();
      const Places* places = finder.at(window);
      const T* from = qkv + image * pixels * 3 * channels + head * dim;
      gather(from, 3 * channels, *places, tokens, dim, s.q, stride);
      gather(from + channels, 3 * channels, *places, tokens, dim, s.k, stride);
      gather(from + 2 * channels, 3 * channels, *places, tokens, dim, s.v, stride);
      gather(grad_out + image * pixels * channels + head * dim, channels, *places, tokens, dim, s.g, stride);
      if (a.cosine) {
        to_unit(s.q, stride, tokens, dim, a.tiny, s.q_length);
        to_unit(s.k, stride, tokens, dim, a.tiny, s.k_length);
      }
      transpose(s.k, stride, tokens, dim, s.kt, padded);
      transpose(s.v, stride, tokens, dim, s.vt, padded);
      const float* bias = a.bias == nullptr ? nullptr : a.bias + head * tokens * padded;
      float* bias_gradient = bias_shares == nullptr ? nullptr : bias_shares + (share * w.heads + head) * tokens * padded;
      const float scale = a.scale[head];
      double scale_gradient = 0;  // of thousands of terms
      auto each_group = [&](auto work) {
        int64_t first = 0;
        for (int64_t group = 0; group < groups; group++) {
          const int64_t count = tokens / groups + (group < tokens % groups);
          work(first, count);
          first += count;
        }
      };
      each_group([&](int64_t first, int64_t count) {
        scale_gradient += some_logit_gradients<QUERIES>(count, s, first, tokens, padded, dim, scale, bias, *places, bias_gradient);
      });
      scale_shares[share * w.heads + head] += scale_gradient;
      T* to = grad_qkv + image * pixels * 3 * channels + head * dim;
      each_group([&](int64_t first, int64_t count) {
        some_gradient_rows<QUERIES>(count, s.ds + first * padded, padded, 1, s.k, stride, tokens, dim, scale, s.result + first * stride, stride);
      });
      if (a.cosine) through_unit(s.q, stride, tokens, dim, a.tiny, s.q_length, s.result);
      scatter(s.result, stride, *places, tokens, dim, to, 3 * channels);
      each_group([&](int64_t first, int64_t count) {
        some_gradient_rows<QUERIES>(count, s.ds + first, 1, padded, s.q, stride, tokens, dim, scale, s.result + first * stride, stride);
      });
      if (a.cosine) through_unit(s.k, stride, tokens, dim, a.tiny, s.k_length, s.result);
      scatter(s.result, stride, *places, tokens, dim, to + channels, 3 * channels);
      each_group([&](int64_t first, int64_t count) {
        some_gradient_rows<QUERIES>(count, s.p + first, 1, padded, s.g, stride, tokens, dim, 1.0f, s.result + first * stride, stride);
      });
      scatter(s.result, stride, *places, tokens, dim, to + 2 * channels, 3 * channels);
    }
  }
  return !failed;
}

}  // namespace swindow

using namespace swindow;

extern "C" {

// These answer whether there was memory enough.
int swindow_attend(const Attention* a, int half, const void* qkv, void* out, int threads) {
  if (half) return attend(*a, static_cast<const bfloat16*>(qkv), static_cast<bfloat16*>(out), threads);
  return attend(*a, static_cast<const float*>(qkv), static_cast<float*>(out), threads);
}
int swindow_attend_backward(const Attention* a, int half, const void* qkv, const void* grad_out, void* grad_qkv, float* bias_shares,
                            double* scale_shares, int threads) {
  if (half)
    return attend_backward(*a, static_cast<const bfloat16*>(qkv), static_cast<const bfloat16*>(grad_out),
                           static_cast<bfloat16*>(grad_qkv), bias_shares, scale_shares, threads);
  return attend_backward(*a, static_cast<const float*>(qkv), static_cast<const float*>(grad_out), static_cast<float*>(grad_qkv),
                         bias_shares, scale_shares, threads);
}

}
