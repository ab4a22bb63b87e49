// y = x w^T for few rows of x, as decoding has: bound by reading w once, so w is read once, in the
// order in which it lies, and fetched ahead while the rows of x pass over what is there.
//
// A tile is up to six rows of x with four rows of w: 24 accumulators, 4 + 1 operands, of the 32
// registers that AVX-512 has. Both operands run along K, so neither is repacked; sixteen partial
// sums of each result are added up at the end. A result is added up in one fixed order whatever
// the tile, so it has the same bits in any batch.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "lanes.h"

namespace mini_llm_server {
namespace {

constexpr int64_t kRows = 6;       // of x in a tile
constexpr int64_t kOutputs = 4;    // rows of w in a tile
constexpr int64_t kBlock = 4096;   // numbers in each of four rows of w that stay in the L2 cache
constexpr int64_t kGrain = 16384;  // columns of four rows of w that are worth waking a thread for

// M rows of x with four rows of w. Meanwhile `ahead` rows of w from `next` on are fetched.
template <int M>
void tile(const float* x, const float* w, float* y, int64_t K, int64_t O, const float* next,
          int64_t ahead) {
  Lanes<float> part[M][kOutputs];
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    for (int o = 0; o < kOutputs; ++o) part[m][o] = Lanes<float>{};
  }
  for (int64_t k = 0; k < K; k += kLanes) {
    const Lanes<float> w0 = load(w + k);
    const Lanes<float> w1 = load(w + K + k);
    const Lanes<float> w2 = load(w + 2 * K + k);
    const Lanes<float> w3 = load(w + 3 * K + k);
    for (int64_t row = 0; row < ahead; ++row) __builtin_prefetch(next + row * K + k);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const Lanes<float> value = load(x + m * K + k);
      part[m][0] += w0 * value;
      part[m][1] += w1 * value;
      part[m][2] += w2 * value;
      part[m][3] += w3 * value;
    }
  }
#pragma GCC unroll 2
  for (int first = 0; first < M; first += 4) {
    Lanes<float> rows[kLanes];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      for (int o = 0; o < kOutputs; ++o) {
        rows[i * kOutputs + o] =
            first + i < M ? part[first + i < M ? first + i : 0][o] : Lanes<float>{};
      }
    }
    const Lanes<float> sums = row_sums<float>(rows);
    for (int i = 0; i < 4 && first + i < M; ++i) {
      for (int o = 0; o < kOutputs; ++o) y[(first + i) * O + o] = sums[i * kOutputs + o];
    }
  }
}

void tile_of(int64_t rows, const float* x, const float* w, float* y, int64_t K, int64_t O,
             const float* next, int64_t ahead) {
  switch (rows) {
    case 1:
      return tile<1>(x, w, y, K, O, next, ahead);
    case 2:
      return tile<2>(x, w, y, K, O, next, ahead);
    case 3:
      return tile<3>(x, w, y, K, O, next, ahead);
    case 4:
      return tile<4>(x, w, y, K, O, next, ahead);
    case 5:
      return tile<5>(x, w, y, K, O, next, ahead);
    default:
      return tile<kRows>(x, w, y, K, O, next, ahead);
  }
}

// x [N, K] and w [O, K], float32, K a multiple of 16 and O of 4; returns [N, O].
at::Tensor skinny_linear(const at::Tensor& x, const at::Tensor& w) {
  TORCH_CHECK(x.dim() == 2 && w.dim() == 2 && x.size(1) == w.size(1), "x is [N, K], w is [O, K]");
  TORCH_CHECK(x.is_contiguous() && w.is_contiguous(), "x and w are not dense");
  TORCH_CHECK(x.scalar_type() == at::kFloat && w.scalar_type() == at::kFloat, "only float32");
  const int64_t N = x.size(0);
  const int64_t K = x.size(1);
  const int64_t O = w.size(0);
  TORCH_CHECK(K % kLanes == 0 && O % kOutputs == 0,
              "w is [" + std::to_string(O) + ", " + std::to_string(K) + "]: not whole tiles");
  at::Tensor y = x.new_empty({N, O});
  const float* const xs = x.const_data_ptr<float>();
  const float* const ws = w.const_data_ptr<float>();
  float* const ys = y.mutable_data_ptr<float>();

  // The first tiles of a group fetch the group one block on, a row or more each.
  const int64_t tiles = (N + kRows - 1) / kRows;
  const int64_t ahead = tiles == 1 ? 4 : tiles <= 3 ? 2 : 1;
  const int64_t fetching = kOutputs / ahead;
  const int64_t block = std::max<int64_t>(1, kBlock / std::max<int64_t>(1, K));
  const int64_t groups = O / kOutputs;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, K));
  at::parallel_for(0, groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t from = begin; from < end; from += block) {
      for (int64_t t = 0; t < tiles; ++t) {
        for (int64_t g = from; g < std::min(end, from + block); ++g) {
          const bool fetches = t < fetching;
          const int64_t next = std::min(g + block, groups - 1) * kOutputs;
          tile_of(std::min(kRows, N - t * kRows), xs + t * kRows * K, ws + g * kOutputs * K,
                  ys + t * kRows * O + g * kOutputs, K, O,
                  ws + (next + (fetches ? t * ahead : 0)) * K, fetches ? ahead : 0);
        }
      }
    }
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mini_llm_server, m) {
  m.def("skinny_linear(Tensor x, Tensor w) -> Tensor");
}

TORCH_LIBRARY_IMPL(mini_llm_server, CPU, m) {
  m.impl("skinny_linear", skinny_linear);
}

}  // namespace mini_llm_server
