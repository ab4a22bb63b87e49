// What stands between a step's matrix products, each as one pass over memory, and the writing of
// keys and values into the cache. In a decode step these are so small that a launch is all they
// cost; in torch's operators they were twenty launches a layer.
//
// Rows are added up in one order whatever else is in the batch.
#include <algorithm>

#include "elements.cuh"

namespace mini_llm_server::cuda {
namespace {

constexpr int kThreads = 256;

// Whether all of these, and every multiple of `width` numbers behind them, are 16-byte aligned.
template <typename T>
bool packs(int64_t width, std::initializer_list<const void*> pointers) {
  uintptr_t bits = static_cast<uintptr_t>(width) * sizeof(T);
  for (const void* pointer : pointers) bits |= reinterpret_cast<uintptr_t>(pointer);
  return bits % 16 == 0;
}

unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

// The sum over a block, in every thread; the block has whole warps.
template <typename A>
__device__ A block_sum(A x) {
  __shared__ A of_warp[32];
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  x = warp_sum(x);
  if (lane == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  return warp_sum(lane < warps ? of_warp[lane] : A(0));
}

// One block a row: with few rows, as decoding has, the row's own length is all the parallelism
// there is. Root-mean-square norm by Zhang and Sennrich 2019.
template <typename T, int kLanes>
__global__ void add_rms_norm_kernel(T* x, const T* delta, const T* weight, T* out, int64_t E,
                                    double eps) {
  using A = Arithmetic<T>;
  x += blockIdx.x * E;
  out += blockIdx.x * E;
  A squares = 0;
  for (int64_t e = threadIdx.x * kLanes; e < E; e += blockDim.x * kLanes) {
    Pack<T, kLanes> row = load<kLanes>(x + e);
    if (delta != nullptr) {
      const Pack<T, kLanes> more = load<kLanes>(delta + blockIdx.x * E + e);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        row.values[i] = narrow<T>(widen(row.values[i]) + widen(more.values[i]));
      }
      store(x + e, row);
    }
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {  // as rounded, where T is narrow
      const A value = widen(row.values[i]);
      squares += value * value;
    }
  }
  const A mean = block_sum(squares) / static_cast<A>(E);
  const A scale = A(1) / sqrt(mean + static_cast<A>(eps));
  for (int64_t e = threadIdx.x * kLanes; e < E; e += blockDim.x * kLanes) {
    const Pack<T, kLanes> row = load<kLanes>(x + e);  // what this thread itself has stored
    const Pack<T, kLanes> factor = load<kLanes>(weight + e);
    Pack<T, kLanes> normed;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const T scaled = narrow<T>(widen(row.values[i]) * scale);
      normed.values[i] = narrow<T>(widen(scaled) * widen(factor.values[i]));
    }
    store(out + e, normed);
  }
}

template <typename T, int kLanes>
__global__ void silu_mul_kernel(const T* gate_up, T* out, int64_t packs_per_row, int64_t count) {
  using A = Arithmetic<T>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t n = i / packs_per_row, width = packs_per_row * kLanes;
  const T* const from = gate_up + n * width + i * kLanes;  // 2 n width + what is left of i
  const Pack<T, kLanes> gate = load<kLanes>(from);
  const Pack<T, kLanes> up = load<kLanes>(from + width);
  Pack<T, kLanes> result;
#pragma unroll
  for (int lane = 0; lane < kLanes; ++lane) {
    const A g = widen(gate.values[lane]);
    result.values[lane] = narrow<T>(g / (A(1) + exp(-g)) * widen(up.values[lane]));
  }
  store(out + i * kLanes, result);
}

template <typename T>
__global__ void rotate_kernel(T* x, int64_t x_row, const T* cos, const T* sin, int64_t heads,
                              int64_t half, int64_t count) {
  using A = Arithmetic<T>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t n = i / (heads * half), in_row = i % (heads * half), d = in_row % half;
  T* const first = x + n * x_row + in_row / half * 2 * half + d;
  T* const second = first + half;
  const T* const c = cos + n * 2 * half + d;
  const T* const s = sin + n * 2 * half + d;
  const A a = widen(*first), b = widen(*second);
  *first = narrow<T>(a * widen(c[0]) + b * widen(s[0]));
  *second = narrow<T>(b * widen(c[half]) + a * widen(s[half]));
}

template <typename T, int kLanes>
__global__ void write_kv_kernel(WriteKv p, int64_t packs_per_row, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t n = i / packs_per_row, column = i % packs_per_row * kLanes;
  const int64_t slot = p.slots[n];
  if (slot < 0) return;
  const T* const k = static_cast<const T*>(p.k) + n * p.k_row + column;
  const T* const v = static_cast<const T*>(p.v) + n * p.v_row + column;
  store(static_cast<T*>(p.k_cache) + slot * p.width + column, load<kLanes>(k));
  store(static_cast<T*>(p.v_cache) + slot * p.width + column, load<kLanes>(v));
}

}  // namespace

cudaError_t add_rms_norm(Type type, void* x, const void* delta, const void* weight, void* out,
                         int64_t N, int64_t E, double eps, cudaStream_t stream) {
  if (N * E == 0) return cudaSuccess;
  return dispatch(type, [&](auto kind) {
    using T = decltype(kind);
    const auto launch = [&](auto kernel, int lanes) {
      const int64_t warps = std::min<int64_t>(32, ((E + lanes - 1) / lanes + 31) / 32);
      kernel<<<unsigned(N), unsigned(32 * warps), 0, stream>>>(
          static_cast<T*>(x), static_cast<const T*>(delta), static_cast<const T*>(weight),
          static_cast<T*>(out), E, eps);
      return cudaGetLastError();
    };
    if (packs<T>(E, {x, delta, weight, out})) {
      return launch(add_rms_norm_kernel<T, kPackLanes<T>>, kPackLanes<T>);
    }
    return launch(add_rms_norm_kernel<T, 1>, 1);
  });
}

cudaError_t silu_mul(Type type, const void* gate_up, void* out, int64_t N, int64_t F,
                     cudaStream_t stream) {
  if (N * F == 0) return cudaSuccess;
  return dispatch(type, [&](auto kind) {
    using T = decltype(kind);
    const auto launch = [&](auto kernel, int lanes) {
      const int64_t count = N * F / lanes;
      kernel<<<blocks_for(count), kThreads, 0, stream>>>(static_cast<const T*>(gate_up),
                                                         static_cast<T*>(out), F / lanes, count);
      return cudaGetLastError();
    };
    if (packs<T>(F, {gate_up, out})) {
      return launch(silu_mul_kernel<T, kPackLanes<T>>, kPackLanes<T>);
    }
    return launch(silu_mul_kernel<T, 1>, 1);
  });
}

cudaError_t rotate(Type type, void* x, int64_t x_row, const void* cos, const void* sin, int64_t N,
                   int64_t heads, int64_t D, cudaStream_t stream) {
  const int64_t count = N * heads * (D / 2);
  if (count == 0) return cudaSuccess;
  return dispatch(type, [&](auto kind) {
    using T = decltype(kind);
    rotate_kernel<<<blocks_for(count), kThreads, 0, stream>>>(
        static_cast<T*>(x), x_row, static_cast<const T*>(cos), static_cast<const T*>(sin), heads,
        D / 2, count);
    return cudaGetLastError();
  });
}

cudaError_t write_kv(const WriteKv& p, cudaStream_t stream) {
  if (p.N * p.width == 0) return cudaSuccess;
  return dispatch(p.type, [&](auto kind) {
    using T = decltype(kind);
    const auto launch = [&](auto kernel, int lanes) {
      const int64_t count = p.N * p.width / lanes;
      kernel<<<blocks_for(count), kThreads, 0, stream>>>(p, p.width / lanes, count);
      return cudaGetLastError();
    };
    const bool even = p.k_row % kPackLanes<T> == 0 && p.v_row % kPackLanes<T> == 0;
    if (even && packs<T>(p.width, {p.k, p.v, p.k_cache, p.v_cache})) {
      return launch(write_kv_kernel<T, kPackLanes<T>>, kPackLanes<T>);
    }
    return launch(write_kv_kernel<T, 1>, 1);
  });
}

}  // namespace mini_llm_server::cuda
