// The CUDA launchers: on the current device, in the given stream, without waiting. No torch here,
// so that nvcc compiles the kernels in seconds. The launch's error is returned; one of the kernel's
// own run shows at the next synchronisation, as always in CUDA.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mini_llm_server::cuda {

enum class Type { kFloat32, kFloat64, kFloat16, kBFloat16 };

// Decode attention: one query of each of B sequences, over its context in the paged cache.
// D is a multiple of 8 and at most 256; rows of D are aligned to 16 bytes.
struct PagedDecode {
  static constexpr int kShortestSplit = 128;  // tokens: less would be all overhead
  static constexpr int kMostSplits = 32;      // a lane of a warp for each, to combine them

  Type type;
  const void* q;          // [B, H, D], with the strides below
  const void* k;          // [slots, K, D], dense
  const void* v;          // like k
  void* out;              // [B, H, D], dense
  const int64_t* table;   // [B, W] block numbers
  const int64_t* length;  // [B] tokens attended to; 0 gives zeros
  void* partial;          // [B, H, most_splits(), D + 2] float, or double for float64
  unsigned* arrivals;     // [B, H] zeros; zeros again afterwards
  int64_t q_row, q_head;  // strides of q
  int B, H, K, D, W, block_size;
  double scale;

  // Most splits that a context has which fits into W blocks: not always the longest one's, as
  // longer contexts are cut into longer splits.
  __host__ __device__ int most_splits() const {
    const int64_t shortest = (int64_t(W) * block_size + kShortestSplit - 1) / kShortestSplit;
    return shortest < 1 ? 1 : shortest < kMostSplits ? int(shortest) : kMostSplits;
  }
};

cudaError_t paged_decode(const PagedDecode& problem, cudaStream_t stream);

// k and v [N, K * D] of N tokens, with strides from token to token, to their slots of the caches
// [slots, K * D]; a negative slot is skipped.
struct WriteKv {
  Type type;
  const void* k;
  const void* v;
  const int64_t* slots;
  void* k_cache;
  void* v_cache;
  int64_t k_row, v_row, N, width;
};

cudaError_t write_kv(const WriteKv& problem, cudaStream_t stream);

// x += delta in place (delta may be null); out = x / sqrt(mean(x^2) + eps) * weight. [N, E], dense.
cudaError_t add_rms_norm(Type type, void* x, const void* delta, const void* weight, void* out,
                         int64_t N, int64_t E, double eps, cudaStream_t stream);

// silu(gate) * up [N, F], where a row of gate_up [N, 2 F] holds gate and then up.
cudaError_t silu_mul(Type type, const void* gate_up, void* out, int64_t N, int64_t F,
                     cudaStream_t stream);

// Rotary positions in place: (a, b) at (d, d + D / 2) of each head of x [N, heads, D] becomes
// (a cos + b sin, b cos' + a sin'), with tables [N, D] and the rotation's sign in that of sines.
cudaError_t rotate(Type type, void* x, int64_t x_row, const void* cos, const void* sin, int64_t N,
                   int64_t heads, int64_t D, cudaStream_t stream);

}  // namespace mini_llm_server::cuda
