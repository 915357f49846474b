// RoIAlign (Mask R-CNN, section 3) on channels-last maps, forward and backward, as torchvision computes it.
//
// A bilinear sample's weights are products of one for its row and one for its column, and so are those of a cell's mean
// over samples: for each of a region's cells along one axis, a few weights of neighbouring rows (or columns) are summed
// once, and a cell is then a small weighted sum of the map's vectors of channels.
#include <algorithm>
#include <cmath>

#include "rows.h"
#include "scratch.h"
#include "vectors.h"

namespace swindow {

struct RegionAlign {
  int64_t images, height, width, channels;  // of the map
  int64_t regions, size;                    // size x size cells each
  const float* rows;                        // regions x 5: image, x1, y1, x2, y2
  float scale;                              // cells of the map for each pixel
  int32_t samples;                          // along a side of a cell; 0 is as many as the cell has of the map's
  int32_t aligned;
};

// What the cells of a region along one axis are made of: weights of `count` lines of the map from `first` on.
struct Lines {
  int64_t first, count;
  float* weights;
};

// Where a sample lies along an axis: between two lines, or, more than one line outside of the map, nowhere.
struct Sample {
  int64_t low = -1, high = -1;
  float far = 0.0f;
  Sample(float at, int64_t length) {
    if (!(at >= -1.0f && at <= static_cast<float>(length))) return;
    at = std::max(at, 0.0f);
    low = std::min(static_cast<int64_t>(at), length - 1);
    high = std::min(low + 1, length - 1);
    far = low == high ? 0.0f : at - static_cast<float>(low);
  }
};

// Summed weights of one cell's samples along an axis.
static Lines weigh(float start, float step, int64_t samples, int64_t length, float* line) {
  const auto sample = [&](int64_t s) {
    return Sample(start + (static_cast<float>(s) + 0.5f) * step / static_cast<float>(samples), length);
  };
  int64_t first = length, last = -1;
  for (int64_t s = 0; s < samples; s++) {
    const Sample at = sample(s);
    if (at.low < 0) continue;
    first = std::min(first, at.low);
    last = std::max(last, at.high);
  }
  if (last < 0) return Lines{0, 0, line};
  std::fill(line + first, line + last + 1, 0.0f);
  for (int64_t s = 0; s < samples; s++) {
    const Sample at = sample(s);
    if (at.low < 0) continue;
    line[at.low] += 1.0f - at.far;
    line[at.high] += at.far;
  }
  return Lines{first, last - first + 1, line + first};
}

static int64_t samples_of(float step, int32_t asked) {
  if (asked > 0) return asked;
  return std::isfinite(step) ? static_cast<int64_t>(std::ceil(step)) : 0;
}

// Of one region: the lines of its cells down and across, and what their sum is divided by.
struct Region {
  int64_t image;
  float share;
  Lines *down, *across;
  float *down_line, *across_line;

  Region(const RegionAlign& a, Scratch* scratch) {
    down = scratch->take<Lines>(a.size);
    across = scratch->take<Lines>(a.size);
    down_line = scratch->take<float>(a.size * a.height);
    across_line = scratch->take<float>(a.size * a.width);
  }
  static int64_t bytes(const RegionAlign& a) {
    return 2 * Scratch::bytes<Lines>(a.size) + Scratch::bytes<float>(a.size * a.height) + Scratch::bytes<float>(a.size * a.width);
  }
  void find(const RegionAlign& a, int64_t r) {
    const float* row = a.rows + 5 * r;
    const float offset = a.aligned ? 0.5f : 0.0f;
    const float x1 = row[1] * a.scale - offset, y1 = row[2] * a.scale - offset;
    float wide = row[3] * a.scale - offset - x1, high = row[4] * a.scale - offset - y1;
    if (!a.aligned) { wide = std::max(wide, 1.0f); high = std::max(high, 1.0f); }
    const float step_y = high / static_cast<float>(a.size), step_x = wide / static_cast<float>(a.size);
    const int64_t sy = samples_of(step_y, a.samples), sx = samples_of(step_x, a.samples);
    image = static_cast<int64_t>(row[0]);
    share = 1.0f / static_cast<float>(std::max<int64_t>(sy * sx, 1));
    for (int64_t i = 0; i < a.size; i++) {
      down[i] = weigh(y1 + static_cast<float>(i) * step_y, step_y, sy, a.height, down_line + i * a.height);
      across[i] = weigh(x1 + static_cast<float>(i) * step_x, step_x, sx, a.width, across_line + i * a.width);
    }
  }
};

template <typename T>
static int align(const RegionAlign& a, const T* map, T* out, int threads) {
  bool failed = false;
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch(Region::bytes(a), &failed);
    if (!failed) {
      Region region(a, &scratch);
#pragma omp for schedule(dynamic, 8)
      for (int64_t r = 0; r < a.regions; r++) {
        region.find(a, r);
        const T* image = map + region.image * a.height * a.width * a.channels;
        T* to = out + r * a.size * a.size * a.channels;
        for (int64_t i = 0; i < a.size; i++)
          for (int64_t j = 0; j < a.size; j++, to += a.channels) {
            const Lines &down = region.down[i], &across = region.across[j];
            for (int64_t c = 0; c < a.channels; c += LANES) {
              const int64_t left = std::min(LANES, a.channels - c);
              Vec sum = {};
              for (int64_t y = 0; y < down.count; y++) {
                const T* line = image + ((down.first + y) * a.width + across.first) * a.channels + c;
                Vec part = {};
                for (int64_t x = 0; x < across.count; x++, line += a.channels)
                  part += splat(across.weights[x]) * (left == LANES ? load(line) : load_part(line, left));
                sum += splat(down.weights[y]) * part;
              }
              sum *= splat(region.share);
              if (left == LANES) store(to + c, sum); else store_part(to + c, sum, left);
            }
          }
      }
    }
  }
  return !failed;
}

// A task is some channels of one image, of which no other task writes: sums come in the same order on every run.
template <typename T>
static int align_backward(const RegionAlign& a, const T* grad, float* slope, int threads) {
  const int64_t block = 4 * LANES, blocks = (a.channels + block - 1) / block;
  bool failed = false;
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch(Region::bytes(a), &failed);
    if (!failed) {
      Region region(a, &scratch);
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < a.images * blocks; task++) {
        const int64_t from = task % blocks * block, until = std::min(from + block, a.channels);
        float* image = slope + task / blocks * a.height * a.width * a.channels;
        for (int64_t r = 0; r < a.regions; r++) {
          if (static_cast<int64_t>(a.rows[5 * r]) != task / blocks) continue;
          region.find(a, r);
          const T* given = grad + r * a.size * a.size * a.channels;
          for (int64_t i = 0; i < a.size; i++)
            for (int64_t j = 0; j < a.size; j++, given += a.channels) {
              const Lines &down = region.down[i], &across = region.across[j];
              for (int64_t c = from; c < until; c += LANES) {
                const int64_t left = std::min(LANES, until - c);
                const Vec value = splat(region.share) * (left == LANES ? load(given + c) : load_part(given + c, left));
                for (int64_t y = 0; y < down.count; y++) {
                  float* line = image + ((down.first + y) * a.width + across.first) * a.channels + c;
                  const Vec part = splat(down.weights[y]) * value;
                  for (int64_t x = 0; x < across.count; x++, line += a.channels) {
                    const Vec more = splat(across.weights[x]) * part;
                    if (left == LANES) store(line, load(line) + more); else store_part(line, load_part(line, left) + more, left);
                  }
                }
              }
            }
        }
      }
    }
  }
  return !failed;
}

}  // namespace swindow

using namespace swindow;

extern "C" {

// These answer whether there was memory enough.
int swindow_region_align(const RegionAlign* a, int half, const void* map, void* out, int threads) {
  if (half) return align(*a, static_cast<const bfloat16*>(map), static_cast<bfloat16*>(out), threads);
  return align(*a, static_cast<const float*>(map), static_cast<float*>(out), threads);
}
int swindow_region_align_backward(const RegionAlign* a, int half, const void* grad, float* slope, int threads) {
  if (half) return align_backward(*a, static_cast<const bfloat16*>(grad), slope, threads);
  return align_backward(*a, static_cast<const float*>(grad), slope, threads);
}
}
