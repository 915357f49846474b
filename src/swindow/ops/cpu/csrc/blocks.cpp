// Whole branches of a block in one pass over the map, for inference: what lies between the branch's input and its
// result never leaves the cache.
//
//   attention:  x + [norm] project(attend([norm] x))      by windows
//   mlp:        x + [norm] fc2(gelu(fc1([norm] x)))       by rows
//   linear:     [x +] [norm] [gelu] product([norm] rows)  by rows, which may be gathered: 2x2 cells, or image patches
#include <algorithm>
#include <cstring>

#include "attention.h"
#include "products.h"
#include "rows.h"
#include "scratch.h"

namespace swindow {

// A row of the map as the operands of a product, through a norm or not.
template <typename T, typename A>
INLINE void operands(const T* row, int64_t channels, const Norm& norm, float* wide, A* to, int64_t stride) {
  if (any(norm)) {
    copy_row(row, wide, channels);
    normalise(wide, channels, norm);
    copy_row(wide, to, channels);
  } else {
    copy_row(row, to, channels);
  }
  zero(to + channels, stride - channels);
}

// What becomes of a row of results: through a norm or not, onto a residual or not.
template <typename T>
INLINE void deliver(float* row, int64_t channels, const Norm& norm, const T* residual, T* to) {
  if (any(norm)) normalise(row, channels, norm);
  int64_t c = 0;
  if (residual != nullptr) {
    for (; c + LANES <= channels; c += LANES) store(to + c, load(row + c) + load(residual + c));
    if (c < channels) store_part(to + c, load_part(row + c, channels - c) + load_part(residual + c, channels - c), channels - c);
  } else {
    copy_row(row, to, channels);
  }
}

// Equal shares of `n` for so many tasks that each has at most `most`, and every thread as many as the others.
struct Shares {
  int64_t tasks, each;
  Shares(int64_t n, int64_t most, int64_t threads) {
    const int64_t rounds = (n + most * threads - 1) / (most * threads);
    each = (n + rounds * threads - 1) / (rounds * threads);
    each = std::max<int64_t>(1, std::min(round_up(each, MR), round_up(most, MR)));
    tasks = (n + each - 1) / each;
  }
};

struct AttentionBranch {
  Windows windows;
  Norm before, after;
  Panels qkv;         // of each head: queries, keys and values, together padded to whole panels
  Panels proj;
  const float* bias;  // heads x tokens x padded tokens, -inf behind the last token
  const float* scale; // of each head
  int32_t cosine;
  float tiny;         // a shorter vector has no direction
};

template <typename T>
static bool attention_branch(const AttentionBranch& b, const T* x, T* y, int threads) {
  typedef Operand<T> A;
  const Windows& w = b.windows;
  const int64_t tokens = w.tokens(), padded = w.padded_tokens(), channels = w.channels(), dim = w.dim;
  const int64_t stride = round_up(channels, STEP), head_width = round_up(3 * dim, NR), result_width = round_up(channels, NR);
  const int64_t all = w.images * w.each();
  // A few windows at a time, so that weights are read for about a hundred rows.
  const int64_t together = std::max<int64_t>(1, std::min(112 / tokens, (all + threads - 1) / threads));
  const int64_t groups = (all + together - 1) / together, rows = together * tokens;
  // Too few windows for the threads: they share each one's heads.
  const int64_t splits = groups >= threads ? 1 : std::min<int64_t>(w.heads, (threads + groups - 1) / groups);
  const int64_t heads_each = (w.heads + splits - 1) / splits;
  A* shared = splits == 1 ? nullptr : static_cast<A*>(std::aligned_alloc(64, round_up(groups * rows * stride * sizeof(A), 64)));
  if (splits > 1 && shared == nullptr) return false;
  typedef Scratch S;
  const int64_t bytes = S::bytes<A>(rows * stride) * 2 + S::bytes<float>(rows * head_width + LANES) + HeadScratch<A>::bytes(tokens, padded, dim) +
                        S::bytes<float>(rows * result_width) + S::bytes<float>(round_up(channels, LANES)) +
                        S::bytes<int64_t>(together * tokens) + S::bytes<int32_t>(together * padded);
  bool failed = false;  // to find memory
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch(bytes, &failed);
    A* normed = scratch.take<A>(rows * stride);
    A* own = scratch.take<A>(rows * stride);
    float* qkv = scratch.take<float>(rows * head_width + LANES);
    HeadScratch<A> one(&scratch, tokens, padded, dim);
    float* result = scratch.take<float>(rows * result_width);
    float* wide = scratch.take<float>(round_up(channels, LANES));
    int64_t* offsets = scratch.take<int64_t>(together * tokens);
    int32_t* regions = scratch.take<int32_t>(together * padded);
    Places places[112];  // a window has at least one token

    auto find = [&](int64_t group) {
      const int64_t count = std::min(together, all - group * together);
      for (int64_t i = 0; i < count; i++) {
        places[i].offset = offsets + i * tokens;
        places[i].region = regions + i * padded;
        find_places(w, (group * together + i) % w.each(), &places[i]);
      }
      return count;
    };
    auto image_of = [&](int64_t group, int64_t i) { return (group * together + i) / w.each() * w.height * w.width; };

    auto attend = [&](int64_t group, int64_t count, int64_t first_head, int64_t last_head, A* attended) {
      for (int64_t i = 0; i < count; i++) {
        for (int64_t t = 0; t < tokens; t++) {
          A* to = normed + (i * tokens + t) * stride;
          if (places[i].offset[t] < 0) zero(to, stride);
          else operands(x + (image_of(group, i) + places[i].offset[t]) * channels, channels, b.before, wide, to, stride);
        }
      }
      for (int64_t head = first_head; head < last_head; head++) {
        product(normed, stride, count * tokens, b.qkv, head * head_width, (head + 1) * head_width, qkv, head_width);
        for (int64_t i = 0; i < count; i++) {
          float* q = qkv + i * tokens * head_width;
          find_factors(q, q + dim, head_width, tokens, dim, b.scale[head], b.cosine, b.tiny, one.factor);
          Head<A> h = prepare(q, q + dim, q + 2 * dim, head_width, tokens, padded, dim, &one);
          h.bias = b.bias + head * tokens * padded;
          h.places = &places[i];
          A* out = attended + i * tokens * stride + head * dim;
          attend_window(h, one, [&](int64_t row, int64_t d, Vec value) {
            if (dim - d >= LANES) store(out + row * stride + d, value);
            else store_part(out + row * stride + d, value, dim - d);
          });
        }
      }
      if (last_head == w.heads)
        for (int64_t row = 0; row < count * tokens; row++) zero(attended + row * stride + channels, stride - channels);
    };
    auto finish = [&](int64_t group, int64_t count, const A* attended) {
      product(attended, stride, count * tokens, b.proj, 0, result_width, result, result_width);
      for (int64_t i = 0; i < count; i++) {
        for (int64_t t = 0; t < tokens; t++) {
          if (places[i].offset[t] < 0) continue;
          const int64_t at = (image_of(group, i) + places[i].offset[t]) * channels;
          deliver(result + (i * tokens + t) * result_width, channels, b.after, x + at, y + at);
        }
      }
    };

#pragma omp barrier
    if (splits == 1) {
#pragma omp for schedule(static)
      for (int64_t group = 0; group < groups; group++) {
        if (failed) continue;
        const int64_t count = find(group);
        attend(group, count, 0, w.heads, own);
        finish(group, count, own);
      }
    } else {
#pragma omp for schedule(static)
      for (int64_t task = 0; task < groups * splits; task++) {
        const int64_t group = task / splits, first = task % splits * heads_each;
        if (failed || first >= w.heads) continue;
        const int64_t count = find(group);
        attend(group, count, first, std::min(first + heads_each, w.heads), shared + group * rows * stride);
      }
#pragma omp for schedule(static)
      for (int64_t group = 0; group < groups; group++) {
        if (failed) continue;
        const int64_t count = find(group);
        finish(group, count, shared + group * rows * stride);
      }
    }
  }
  std::free(shared);
  return !failed;
}

struct MlpBranch {
  int64_t rows, channels, hidden;
  Norm before, after;
  Panels fc1, fc2;
};

template <typename T>
static bool mlp_branch(const MlpBranch& b, const T* x, T* y, int threads) {
  typedef Operand<T> A;
  const int64_t stride = round_up(b.channels, STEP), result_width = round_up(b.channels, NR);
  // The hidden channels are taken some whole panels at a time: they and the rows around them are to fit into the cache.
  const int64_t hidden = round_up(b.hidden, NR);
  const int64_t part = std::min(hidden, LONGEST / NR * NR);
  const Shares shares(b.rows, 96, threads);
  const int64_t part_stride = round_up(part, STEP);
  typedef Scratch S;
  const int64_t bytes = S::bytes<A>(shares.each * stride) + S::bytes<A>(shares.each * part_stride) +
                        S::bytes<float>(shares.each * result_width) + S::bytes<float>(round_up(b.channels, LANES));
  const A* w1 = static_cast<const A*>(b.fc1.weights);
  const A* w2 = static_cast<const A*>(b.fc2.weights);
  const int64_t steps1 = even(b.channels), steps2 = even(b.hidden);
  bool failed = false;  // to find memory
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch(bytes, &failed);
    A* normed = scratch.take<A>(shares.each * stride);
    A* middle = scratch.take<A>(shares.each * part_stride);
    float* result = scratch.take<float>(shares.each * result_width);
    float* wide = scratch.take<float>(round_up(b.channels, LANES));
    if (middle != nullptr) zero(middle, shares.each * part_stride);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t task = 0; task < shares.tasks; task++) {
      if (failed) continue;
      const int64_t first = task * shares.each, count = std::min(shares.each, b.rows - first);
      for (int64_t r = 0; r < count; r++) operands(x + (first + r) * b.channels, b.channels, b.before, wide, normed + r * stride, stride);
      for (int64_t h = 0; h < hidden; h += part) {
        const int64_t end = std::min(h + part, hidden);
        for (int64_t n = h; n < end; n += NR) {
          panel_product(normed, stride, count, w1 + n * steps1, steps1,
                        [&](int64_t, int64_t column) { return load(b.fc1.bias + n + column); },
                        [&](int64_t row, int64_t column, Vec v) { store(middle + row * part_stride + n - h + column, gelu(v, T{})); });
        }
        const int64_t steps = std::min(end, steps2) - h;
        for (int64_t n = 0; n < result_width; n += NR) {
          float* to = result + n;
          panel_product(middle, part_stride, count, w2 + n * steps2 + h * NR, steps,
                        [&](int64_t row, int64_t column) { return h == 0 ? load(b.fc2.bias + n + column) : load(to + row * result_width + column); },
                        [&](int64_t row, int64_t column, Vec v) { store(to + row * result_width + column, v); });
        }
      }
      for (int64_t r = 0; r < count; r++) {
        const int64_t at = (first + r) * b.channels;
        deliver(result + r * result_width, b.channels, b.after, x + at, y + at);
      }
    }
  }
  return !failed;
}

enum Source { ROWS = 0, CELLS = 1, PATCHES = 2 };

struct LinearLayer {
  int32_t source;
  int32_t activation;      // 1: GELU
  int64_t images, height, width, channels;  // of the map or image that rows come from; ROWS: images x height x width of them
  int64_t patch_height, patch_width;
  Norm before, after;
  Panels weights;
};

// Row `index` of the inputs: as it is, of a 2x2 cell of the map (column-major), or of an NCHW image's patch.
template <typename T>
INLINE const T* input_row(const LinearLayer& l, const T* x, int64_t index, T* gathered) {
  if (l.source == ROWS) return x + index * l.channels;
  const int64_t high = l.source == CELLS ? 2 : l.patch_height, across = l.source == CELLS ? 2 : l.patch_width;
  const int64_t columns = (l.width + across - 1) / across, rows = (l.height + high - 1) / high;
  const int64_t image = index / (rows * columns), top = index / columns % rows * high, left = index % columns * across;
  T* to = gathered;
  if (l.source == CELLS) {
    for (int64_t dx = 0; dx < 2; dx++) {
      for (int64_t dy = 0; dy < 2; dy++, to += l.channels) {
        if (top + dy < l.height && left + dx < l.width)
          std::memcpy(static_cast<void*>(to), x + ((image * l.height + top + dy) * l.width + left + dx) * l.channels, l.channels * sizeof(T));
        else zero(to, l.channels);
      }
    }
  } else {
    const int64_t inside = std::min(across, l.width - left);
    for (int64_t c = 0; c < l.channels; c++) {
      for (int64_t dy = 0; dy < high; dy++, to += across) {
        const bool there = top + dy < l.height;
        if (there) std::memcpy(static_cast<void*>(to), x + ((image * l.channels + c) * l.height + top + dy) * l.width + left, inside * sizeof(T));
        zero(to + (there ? inside : 0), across - (there ? inside : 0));
      }
    }
  }
  return gathered;
}

template <typename T>
static bool linear_layer(const LinearLayer& l, const T* x, const T* residual, T* y, int threads) {
  typedef Operand<T> A;
  const int64_t inputs = l.weights.inputs, outputs = l.weights.outputs;
  const int64_t high = l.source == ROWS ? 1 : l.source == CELLS ? 2 : l.patch_height;
  const int64_t across = l.source == ROWS ? 1 : l.source == CELLS ? 2 : l.patch_width;
  const int64_t all = l.images * ((l.height + high - 1) / high) * ((l.width + across - 1) / across);
  const int64_t stride = round_up(inputs, STEP), width = round_up(outputs, NR);
  const Shares shares(all, 96, threads);
  // Few rows and many outputs: threads share the outputs too, unless a norm wants all of them together.
  typedef Scratch S;
  const int64_t bytes = S::bytes<A>(shares.each * stride) + S::bytes<float>(shares.each * width) +
                        S::bytes<float>(round_up(inputs, LANES)) + S::bytes<T>(round_up(inputs, LANES));
  bool failed = false;  // to find memory
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch(bytes, &failed);
    A* rows = scratch.take<A>(shares.each * stride);
    float* result = scratch.take<float>(shares.each * width);
    float* wide = scratch.take<float>(round_up(inputs, LANES));
    T* gathered = scratch.take<T>(round_up(inputs, LANES));
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t task = 0; task < shares.tasks; task++) {
      if (failed) continue;
      const int64_t first = task * shares.each, count = std::min(shares.each, all - first);
      for (int64_t r = 0; r < count; r++) operands(input_row(l, x, first + r, gathered), inputs, l.before, wide, rows + r * stride, stride);
      product(rows, stride, count, l.weights, 0, width, result, width);
      if (l.activation)
        for (int64_t i = 0; i < count * width; i += LANES) store(result + i, gelu(load(result + i), T{}));
      for (int64_t r = 0; r < count; r++) {
        const int64_t at = (first + r) * outputs;
        deliver(result + r * width, outputs, l.after, residual == nullptr ? nullptr : residual + at, y + at);
      }
    }
  }
  return !failed;
}

// Weights, outputs x inputs in fp32, to panels.
template <typename A>
static void pack(const float* weights, int64_t outputs, int64_t inputs, A* to) {
  const int64_t steps = even(inputs), width = round_up(outputs, NR);
  for (int64_t n = 0; n < width; n++) {
    for (int64_t k = 0; k < steps; k++) {
      const float value = n < outputs && k < inputs ? weights[n * inputs + k] : 0.0f;
      const int64_t within = sizeof(A) == 2 ? k / 2 * 2 * NR + n % NR * 2 + k % 2 : k * NR + n % NR;
      from_float(to + n / NR * NR * steps + within, value);
    }
  }
}

}  // namespace swindow

using namespace swindow;

extern "C" {

// NR, LANES, tokens are padded to, and whether bf16 tokens are multiplied as bf16.
void swindow_shape(int64_t* to) {
  to[0] = NR;
  to[1] = LANES;
  to[2] = KEYS;
  to[3] = sizeof(Operand<bfloat16>) == 2;
}
void swindow_pack(const float* weights, int64_t outputs, int64_t inputs, int half, void* to) {
  if (half) pack(weights, outputs, inputs, static_cast<bfloat16*>(to));
  else pack(weights, outputs, inputs, static_cast<float*>(to));
}
// These answer whether there was memory enough.
int swindow_attention_branch(const AttentionBranch* b, int half, const void* x, void* y, int threads) {
  if (half) return attention_branch(*b, static_cast<const bfloat16*>(x), static_cast<bfloat16*>(y), threads);
  return attention_branch(*b, static_cast<const float*>(x), static_cast<float*>(y), threads);
}
int swindow_mlp_branch(const MlpBranch* b, int half, const void* x, void* y, int threads) {
  if (half) return mlp_branch(*b, static_cast<const bfloat16*>(x), static_cast<bfloat16*>(y), threads);
  return mlp_branch(*b, static_cast<const float*>(x), static_cast<float*>(y), threads);
}
int swindow_linear_layer(const LinearLayer* l, int half, const void* x, const void* residual, void* y, int threads) {
  if (half)
    return linear_layer(*l, static_cast<const bfloat16*>(x), static_cast<const bfloat16*>(residual), static_cast<bfloat16*>(y), threads);
  return linear_layer(*l, static_cast<const float*>(x), static_cast<const float*>(residual), static_cast<float*>(y), threads);
}

}
