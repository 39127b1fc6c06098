// Two ways through the same formula. Both go over a KV head with all the query heads that share it, so that each key and
// value is fetched once, and both divide the work so that every thread gets some even when there are fewer heads than
// threads:
//   few rows (decode):   a range of the keys a unit of work; the partial softmaxes are joined at the end;
//   many rows (prefill): a block of rows a unit of work, over tiles of keys copied to where a matrix product wants them.
#include "attention.h"

#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "thread_pool.h"

namespace mobile_export {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif
constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr int64_t kFewRows = 8;
constexpr int64_t kTileKeys = 64;
constexpr int64_t kTileRows = 4;                        // of a matrix product: accumulators stay in registers
#if defined(__aarch64__)
constexpr int kTileLanes = 4;  // 16 accumulators of 32 registers: each value loaded is used four times, and so is each factor
#else
constexpr int kTileLanes = 2;
#endif
constexpr int64_t kTileColumns = kTileLanes * kLanes;   // likewise
constexpr int64_t kBlockRows = 192;                     // a copied tile serves so many rows
constexpr int64_t kSerialProducts = 48 * 1024;          // less than this takes no longer than waking a thread
constexpr int64_t kLeastKeys = 32;                      // of a range that is a unit of work
constexpr int64_t kAhead = 16;                          // rows asked for before they are read
static_assert(kTileKeys % kTileColumns == 0);

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// Scratch memory of the calling thread, on a cache line of its own and kept between calls: a decode step is too short for an
// allocation each, and what crosses a line is fetched twice.
template <int kUse>
float* scratch(int64_t count) {
  constexpr size_t kLine = 64;
  thread_local std::vector<float> memory;
  if (memory.size() < count + kLine / sizeof(float)) memory.resize(count + kLine / sizeof(float));
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + ((kLine - address % kLine) % kLine) / sizeof(float);
}

// e**x for x <= 0, within 2 units in the last place (Cody-Waite reduction, Taylor to degree 6); 0 below -87.
inline float exp_of(float x) {
  constexpr float kRound = 12582912.f;  // 1.5 * 2**23: adding and subtracting it rounds to an integer
  const float bounded = std::max(x, -87.f);
  const float n = (bounded * 1.44269504f + kRound) - kRound;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.f / 720;
  y = y * r + 1.f / 120;
  y = y * r + 1.f / 24;
  y = y * r + 1.f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.f;
  y = y * r + 1.f;
  const int32_t exponent = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &exponent, sizeof power);
  return x < -87.f ? 0.f : y * power;
}

// scores[n] -> e**(scores[n] - highest); gives their sum.
float exponentials(float* scores, int64_t count, float highest) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t n = 0; n < count; ++n) {
    scores[n] = exp_of(scores[n] - highest);
    sum += scores[n];
  }
  return sum;
}

float highest_of(const float* scores, int64_t count) {
  float highest = kLowest;
#pragma omp simd reduction(max : highest)
  for (int64_t n = 0; n < count; ++n) highest = std::max(highest, scores[n]);
  return highest;
}

// Of one row, or of kTileRows rows at once, with one other: products[r * stride] = rows[r] . other.
void dot_one(const float* rows, const float* other, int64_t count, float* products) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += rows[i] * other[i];
  *products = sum;
}

void dot_tile(const float* rows, const float* other, int64_t count, float* products, int64_t stride) {
  static_assert(kTileRows == 4);
  const float *row1 = rows + count, *row2 = row1 + count, *row3 = row2 + count;
  float sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
  for (int64_t i = 0; i < count; ++i) {
    sum0 += rows[i] * other[i];
    sum1 += row1[i] * other[i];
    sum2 += row2[i] * other[i];
    sum3 += row3[i] * other[i];
  }
  products[0] = sum0;
  products[stride] = sum1;
  products[2 * stride] = sum2;
  products[3 * stride] = sum3;
}

// c[kRows, columns] = or += a[kRows, depth] b[depth, columns]; columns in steps of kTileColumns.
template <int kRows, bool kAdd>
void multiply(
    const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c, int64_t c_stride, int64_t depth,
    int64_t columns) {
  for (int64_t column = 0; column < columns; column += kTileColumns) {
    Lanes sum[kRows][kTileLanes] = {};
    for (int64_t k = 0; k < depth; ++k) {
      const Lanes* row = reinterpret_cast<const Lanes*>(b + k * b_stride + column);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const float factor = a[r * a_stride + k];
#pragma GCC unroll 4
        for (int lanes = 0; lanes < kTileLanes; ++lanes) sum[r][lanes] += row[lanes] * factor;
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      Lanes* row = reinterpret_cast<Lanes*>(c + r * c_stride + column);
#pragma GCC unroll 4
      for (int lanes = 0; lanes < kTileLanes; ++lanes) row[lanes] = kAdd ? row[lanes] + sum[r][lanes] : sum[r][lanes];
    }
  }
}

int64_t value_at(const Rows& rows, int64_t position, int64_t head) {
  return position * rows.position_stride + head * rows.head_stride;
}

int64_t scale_at(const Rows& rows, int64_t position, int64_t head) {
  return position * rows.position_scale_stride + head * rows.head_scale_stride;
}

// A row as float32 without its scale: int8 as code - zero, whose products and sums float32 holds exactly up to 256 wide.
const float* unscaled(const Rows& rows, int64_t position, int64_t head, int64_t head_dim, float* memory) {
  if (rows.values) return rows.values + value_at(rows, position, head);
  const int8_t* codes = rows.codes + value_at(rows, position, head);
  const int32_t zero = rows.zeros[scale_at(rows, position, head)];
#pragma omp simd
  for (int64_t d = 0; d < head_dim; ++d) memory[d] = static_cast<float>(codes[d] - zero);
  return memory;
}

float scale_of(const Rows& rows, int64_t position, int64_t head) {
  return rows.values ? 1.f : rows.scales[scale_at(rows, position, head)];
}

// A row as float32 with its scale.
void copy_scaled(const Rows& rows, int64_t position, int64_t head, int64_t head_dim, float* out) {
  const float* row = unscaled(rows, position, head, head_dim, out);
  const float scale = scale_of(rows, position, head);
  for (int64_t d = 0; d < head_dim; ++d) out[d] = row[d] * scale;
}

// Asks for a row of a head. Rows of one head lie apart, in steps no prefetcher of a processor follows.
void prefetch(const Rows& rows, int64_t position, int64_t head, int64_t head_dim) {
  constexpr int64_t kLine = 64;
  const int64_t at = value_at(rows, position, head);
  const char* row = rows.values ? reinterpret_cast<const char*>(rows.values + at) : reinterpret_cast<const char*>(rows.codes + at);
  const int64_t bytes = head_dim * (rows.values ? sizeof(float) : sizeof(int8_t));
  for (int64_t byte = 0; byte < bytes; byte += kLine) __builtin_prefetch(row + byte);
}

// How many keys a query sees.
int64_t seen(const Attention& a, int64_t token) {
  return a.causal ? std::min(a.n_keys, a.start + token + 1) : a.n_keys;
}

float* out_row(const Attention& a, int64_t token, int64_t head) { return a.out + value_at(a.query, token, head); }

// --- few rows --------------------------------------------------------------------------------------------------------

// What a range of keys gives each row: `wide` sums of values weighted by exponentials, the sum of the exponentials, and the
// highest score, above which they were taken.
struct Partials {
  int64_t rows;  // in tiles, but for a single one
  int64_t wide;

  explicit Partials(const Attention& a) : wide(round_up(a.head_dim, kTileColumns)) {
    rows = a.length * (a.heads / a.kv_heads);
    if (rows > 1) rows = round_up(rows, kTileRows);
  }
  int64_t size() const { return rows * (wide + 2); }
  float* sum(float* memory, int64_t row) const { return memory + row * wide; }
  float& total(float* memory, int64_t row) const { return memory[rows * wide + row]; }
  float& highest(float* memory, int64_t row) const { return memory[rows * (wide + 1) + row]; }
};

void attend_range(const Attention& a, int64_t kv_head, int64_t from, int64_t to, const Partials& partials, float* result) {
  const int64_t groups = a.heads / a.kv_heads, dim = a.head_dim, wide = partials.wide, count = to - from;
  const int64_t rows = a.length * groups, padded = partials.rows;
  const bool in_place = a.values.values && dim == wide;  // values a product can read where they are
  float* tile = scratch<0>(kTileKeys * wide + padded * (dim + count) + rows + dim);  // [tile, wide]
  float* queries = tile + kTileKeys * wide;                                          // [padded, dim]
  float* scores = queries + padded * dim;                                            // [padded, count]
  float* factors = scores + padded * count;                                          // [rows]
  float* key_row = factors + rows;                                                   // [dim]
  std::fill_n(queries, padded * dim, 0.f);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = r / groups, head = kv_head * groups + r % groups;
    const float* query = unscaled(a.query, token, head, dim, queries + r * dim);
    if (query != queries + r * dim) std::copy_n(query, dim, queries + r * dim);
    factors[r] = a.scale * scale_of(a.query, token, head);
  }
  for (int64_t n = 0; n < count; ++n) {
    if (n + kAhead < count) prefetch(a.keys, from + n + kAhead, kv_head, dim);
    prefetch(a.values, from + n, kv_head, dim);
    const float* key = unscaled(a.keys, from + n, kv_head, dim, key_row);
    if (padded == 1) {
      dot_one(queries, key, dim, scores + n);
    } else {
      for (int64_t r = 0; r < padded; r += kTileRows) dot_tile(queries + r * dim, key, dim, scores + r * count + n, count);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = r / groups, visible = std::clamp<int64_t>(seen(a, token) - from, 0, count);
    float* weights = scores + r * count;
    for (int64_t n = 0; n < visible; ++n) weights[n] *= factors[r] * scale_of(a.keys, from + n, kv_head);
    if (a.mask) {
      const float* mask = a.mask + token * a.mask_stride + from;
      for (int64_t n = 0; n < visible; ++n) weights[n] += mask[n];
    }
    const float highest = highest_of(weights, visible);
    partials.highest(result, r) = highest;
    partials.total(result, r) = highest == kLowest ? 0 : exponentials(weights, visible, highest);
    std::fill(weights + (highest == kLowest ? 0 : visible), weights + count, 0.f);
  }
  std::fill_n(result, padded * wide, 0.f);
  for (int64_t first = 0; first < count; first += kTileKeys) {
    const int64_t keys = std::min(kTileKeys, count - first);
    const float* values = tile;
    if (in_place) {
      values = a.values.values + value_at(a.values, from + first, kv_head);
    } else {
      std::fill_n(tile, keys * wide, 0.f);
      for (int64_t n = 0; n < keys; ++n) copy_scaled(a.values, from + first + n, kv_head, dim, tile + n * wide);
    }
    const int64_t stride = in_place ? a.values.position_stride : wide;
    if (padded == 1) {
      multiply<1, true>(scores + first, count, values, stride, result, wide, keys, wide);
    } else {
      for (int64_t r = 0; r < padded; r += kTileRows) {
        multiply<kTileRows, true>(scores + r * count + first, count, values, stride, result + r * wide, wide, keys, wide);
      }
    }
  }
}

void attend_few(const Attention& a, int64_t threads) {
  const int64_t groups = a.heads / a.kv_heads, rows = a.length * groups, most = seen(a, a.length - 1);
  const bool serial = most * a.heads * a.length * a.head_dim < kSerialProducts;
  int64_t ranges = serial ? 1 : threads / std::gcd(threads, a.kv_heads);  // units of work: a multiple of the threads
  ranges = std::clamp<int64_t>(ranges, 1, std::max<int64_t>(1, most / kLeastKeys));
  const Partials partials(a);
  float* results = scratch<1>(a.kv_heads * ranges * partials.size());
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t range = unit / a.kv_heads, kv_head = unit % a.kv_heads;  // a thread reads on where it was
      const int64_t from = most * range / ranges, to = most * (range + 1) / ranges;
      attend_range(a, kv_head, from, to, partials, results + (kv_head * ranges + range) * partials.size());
    }
  };
  if (serial) {
    run(0, a.kv_heads * ranges);
  } else {
    executorch::extension::parallel_for(0, a.kv_heads * ranges, 1, run);
  }
  for (int64_t kv_head = 0; kv_head < a.kv_heads; ++kv_head) {
    float* first = results + kv_head * ranges * partials.size();
    for (int64_t r = 0; r < rows; ++r) {
      float highest = kLowest, total = 0;
      for (int64_t range = 0; range < ranges; ++range) {
        highest = std::max(highest, partials.highest(first + range * partials.size(), r));
      }
      float* out = out_row(a, r / groups, kv_head * groups + r % groups);
      std::fill_n(out, a.head_dim, 0.f);
      for (int64_t range = 0; range < ranges; ++range) {
        float* result = first + range * partials.size();
        const float own = partials.highest(result, r), share = own == kLowest ? 0.f : exp_of(own - highest);
        const float* sum = partials.sum(result, r);
        total += share * partials.total(result, r);
        for (int64_t d = 0; d < a.head_dim; ++d) out[d] += share * sum[d];
      }
      for (int64_t d = 0; d < a.head_dim; ++d) out[d] /= total;  // NaN, as in the runtime's own, where nothing was seen
    }
  }
}

// --- many rows -------------------------------------------------------------------------------------------------------

void attend_block(const Attention& a, int64_t kv_head, int64_t first_row, int64_t n_rows) {
  const int64_t groups = a.heads / a.kv_heads, dim = a.head_dim;
  const int64_t wide = round_up(dim, kTileColumns), padded_rows = round_up(n_rows, kTileRows);
  const int64_t tiles = kTileKeys * (dim + wide + kTileRows + 1);
  float* keys = scratch<0>(tiles + padded_rows * (wide + dim + 3));  // [dim, tile]
  float* values = keys + dim * kTileKeys;                            // [tile, wide]
  float* scores = values + kTileKeys * wide;                         // [4, tile]
  float* key_scales = scores + kTileRows * kTileKeys;                // [tile]
  float* sums = key_scales + kTileKeys;                              // [rows, wide]
  float* queries = sums + padded_rows * wide;                        // [rows, dim]
  float* factors = queries + padded_rows * dim;                      // [rows]
  float* highest = factors + padded_rows;                            // [rows]
  float* totals = highest + padded_rows;                             // [rows]
  std::fill_n(queries, padded_rows * dim, 0.f);    // rows that are there for the product's sake
  std::fill_n(sums, padded_rows * wide, 0.f);
  std::fill_n(values, kTileKeys * wide, 0.f);
  for (int64_t r = 0; r < n_rows; ++r) {
    const int64_t token = (first_row + r) / groups, head = kv_head * groups + (first_row + r) % groups;
    const float* query = unscaled(a.query, token, head, dim, queries + r * dim);
    if (query != queries + r * dim) std::copy_n(query, dim, queries + r * dim);
    factors[r] = a.scale * scale_of(a.query, token, head);
    highest[r] = kLowest;
    totals[r] = 0;
  }
  const int64_t most = seen(a, (first_row + n_rows - 1) / groups);
  for (int64_t from = 0; from < most; from += kTileKeys) {
    const int64_t count = std::min(kTileKeys, most - from);
    for (int64_t n = 0; n < count; ++n) {
      float* value = values + n * wide;
      const float* key = unscaled(a.keys, from + n, kv_head, dim, value);  // the value's place, written just after
      for (int64_t d = 0; d < dim; ++d) keys[d * kTileKeys + n] = key[d];
      key_scales[n] = scale_of(a.keys, from + n, kv_head);
      copy_scaled(a.values, from + n, kv_head, dim, value);
    }
    for (int64_t d = 0; d < dim && count < kTileKeys; ++d) std::fill_n(keys + d * kTileKeys + count, kTileKeys - count, 0.f);
    for (int64_t row = 0; row < n_rows; row += kTileRows) {
      const int64_t rows = std::min(kTileRows, n_rows - row);
      if (seen(a, (first_row + row + rows - 1) / groups) <= from) continue;
      multiply<kTileRows, false>(queries + row * dim, dim, keys, kTileKeys, scores, kTileKeys, dim, kTileKeys);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t token = (first_row + row + r) / groups, visible = std::clamp<int64_t>(seen(a, token) - from, 0, count);
        float* weights = scores + r * kTileKeys;
        const float factor = factors[row + r];
        for (int64_t n = 0; n < visible; ++n) weights[n] *= factor * key_scales[n];
        if (a.mask) {
          const float* mask = a.mask + token * a.mask_stride + from;
          for (int64_t n = 0; n < visible; ++n) weights[n] += mask[n];
        }
        const float above = std::max(highest[row + r], highest_of(weights, visible));
        if (above == kLowest) {
          std::fill_n(weights, kTileKeys, 0.f);
          continue;
        }
        const float shrink = highest[row + r] == kLowest ? 0.f : exp_of(highest[row + r] - above);
        totals[row + r] = totals[row + r] * shrink + exponentials(weights, visible, above);
        std::fill(weights + visible, weights + kTileKeys, 0.f);
        if (shrink != 1.f) {
          float* sum = sums + (row + r) * wide;
          for (int64_t d = 0; d < wide; ++d) sum[d] *= shrink;
        }
        highest[row + r] = above;
      }
      multiply<kTileRows, true>(scores, kTileKeys, values, wide, sums + row * wide, wide, count, wide);
    }
  }
  for (int64_t r = 0; r < n_rows; ++r) {
    float* out = out_row(a, (first_row + r) / groups, kv_head * groups + (first_row + r) % groups);
    const float total = totals[r];
    for (int64_t d = 0; d < dim; ++d) out[d] = sums[r * wide + d] / total;
  }
}

void attend_many(const Attention& a, int64_t threads) {
  const int64_t rows = a.length * (a.heads / a.kv_heads);
  int64_t blocks = std::max<int64_t>((rows + kBlockRows - 1) / kBlockRows, 1);
  blocks = std::min(round_up(blocks, threads / std::gcd(threads, a.kv_heads)), (rows + kTileRows - 1) / kTileRows);
  executorch::extension::parallel_for(0, a.kv_heads * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t block = unit % blocks, first = rows * block / blocks;
      attend_block(a, unit / blocks, first, rows * (block + 1) / blocks - first);
    }
  });
}

}  // namespace

void attend(const Attention& attention) {
  const auto threads = static_cast<int64_t>(executorch::extension::threadpool::get_threadpool()->get_thread_count());
  const int64_t rows = attention.length * (attention.heads / attention.kv_heads);
  rows <= kFewRows ? attend_few(attention, threads) : attend_many(attention, threads);
}

}  // namespace mobile_export
