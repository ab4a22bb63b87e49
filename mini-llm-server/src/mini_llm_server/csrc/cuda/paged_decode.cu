// Decode attention over the paged KV cache, reading keys and values where they lie.
//
// Split along the context (flash-decoding, Dao et al. 2023): with one query a sequence there is no
// other parallelism, and a long context must not occupy one multiprocessor while others idle. A
// work item is one split of one sequence with one KV head; the query heads that share this KV head
// read its keys together. Within an item softmax is online (Milakov and Gimelshein 2018). The block
// that ends a sequence's last open item adds up its splits, in their order.
//
// How a context is cut depends on its own length alone: a sequence has the same bits alone and in
// any batch, on any GPU.
//
// How fast it can be: a decode reads every key and value once, so the memory sets the pace, and
// Little's law says how much must be asked for at once: 3.35 TB/s of an H100 times some 0.8 us of
// latency is 2.7 MB, 20 KB for each of 132 multiprocessors. A block asks for a whole tile of keys
// and one of values, 16 KB each, before it uses the first; cp.async needs no registers for them.
// Four or more such blocks fit on an H100's multiprocessor (two on those with 100 KB of shared
// memory), so that enough is on its way even while most of them compute.
//
// The grid is as large as the GPU and finds its work in the lengths, on the device: the same launch
// serves any lengths, as a CUDA graph's has to, and costs nothing for contexts that are not there.
//
// Code is kept short: a work item is a few hundred instructions of which few repeat, and a kernel
// that is larger than the instruction cache waits for itself. Hence sizes known to the compiler for
// the usual heads, and few unrolled loops.
#include <cuda_pipeline_primitives.h>

#include <algorithm>

#include "elements.cuh"

namespace mini_llm_server::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kShortestSplit = PagedDecode::kShortestSplit;
constexpr int kMostSplits = PagedDecode::kMostSplits;
constexpr int kBlocksAtOnce = 4;  // on a multiprocessor, that registers have to suffice for
// Query heads in an item: eight would need more registers. A KV head's other query heads are the
// neighbouring block's, which finds the same keys in the L2 cache.
constexpr int kMostHeads = 4;

// How a context of some length is cut.
struct Splits {
  int tokens;  // in each, but for the last
  int count;   // at least one: an empty context has zeros to write

  __host__ __device__ explicit Splits(int length) {
    const int shortest = (length + kShortestSplit - 1) / kShortestSplit;
    const int merged = (shortest + kMostSplits - 1) / kMostSplits;
    tokens = (merged > 1 ? merged : 1) * kShortestSplit;
    count = merged > 1 ? (shortest + merged - 1) / merged : shortest > 1 ? shortest : 1;
  }
};

// How a block's threads and shared memory are divided, for a head size and a storage type.
struct Layout {
  int columns;  // packs of 16 bytes in a row of D
  int across;   // threads side by side on a row of values: columns, up to a power of two
  int lanes;    // and on a row of keys, within a warp
  int tile;     // tokens whose keys and values are in shared memory at once
  int bytes;    // of shared memory, in all

  __host__ __device__ constexpr Layout(int D, int type_bytes, int heads)
      : columns(D * type_bytes / 16), across(heads), lanes(0), tile(kThreads), bytes(0) {
    while (across < columns) across *= 2;
    lanes = across < 32 ? across : 32;
    // 16 KB of keys; half for double. Two tiles are room enough for the threads' sums.
    const int most = (type_bytes == 8 ? 8192 : 16384) / (D * type_bytes);
    while (tile > most) tile /= 2;
    bytes = 2 * tile * D * type_bytes + heads * tile * (type_bytes == 8 ? 8 : 4);
  }
};

// A work item, and the tile of it that is at work.
struct Work {
  int sequence, split;
  int length;                      // of the sequence's context
  int kv_head, first_head, heads;  // query heads [first_head, first_head + heads) share kv_head
  int begin, end;                  // tokens of the split
  int first;                       // token of the tile
};

// Let the block find split number `unit` of all sequences' splits. Returns false if there are
// fewer.
__device__ bool find(const int64_t* length, int B, int unit, Work& work) {
  __shared__ int of_warp[kWarps], sequence, split, context;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int before = 0;
  for (int first = 0; first < B && unit >= before; first += kThreads) {
    const int b = first + threadIdx.x;
    const int own_length = b < B ? static_cast<int>(length[b]) : 0;
    const int own = b < B ? Splits(own_length).count : 0;
    int end = own;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(~0u, end, offset);
      if (lane >= offset) end += other;
    }
    if (lane == 31) of_warp[warp] = end;
    __syncthreads();
    end += before;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) end += of_warp[w];
      before += of_warp[w];
    }
    if (end - own <= unit && unit < end) {
      sequence = b;
      split = unit - (end - own);
      context = own_length;
    }
    __syncthreads();
  }
  work.sequence = sequence;
  work.split = split;
  work.length = context;
  return unit < before;
}

// Let the block begin a work item. Returns false if there are fewer.
template <int kHeads>
__device__ bool open(const PagedDecode& p, int item, Work& work) {
  const int G = p.H / p.K, chunks = (G + kHeads - 1) / kHeads;  // items with the same keys
  const int of_split = item % (p.K * chunks);
  if (!find(p.length, p.B, item / (p.K * chunks), work)) return false;
  work.kv_head = of_split / chunks;
  work.first_head = work.kv_head * G + of_split % chunks * kHeads;
  work.heads = min(kHeads, (work.kv_head + 1) * G - work.first_head);
  const Splits splits(work.length);
  work.begin = work.first = work.split * splits.tokens;
  work.end = min(work.length, work.begin + splits.tokens);
  return true;
}

// Ask for a tile's rows of keys or values: those at row_at, in numbers from `cache` on.
template <typename T>
__device__ __forceinline__ void fetch(T* target, const T* cache, const int64_t* row_at, int rows,
                                      int D, const Layout& at) {
  const int column = threadIdx.x % at.across;
#pragma unroll 4
  for (int top = 0; top < at.tile; top += kThreads / at.across) {
    const int row = top + threadIdx.x / at.across;
    if (row < rows && column < at.columns) {
      __pipeline_memcpy_async(target + row * D + column * kPackLanes<T>,
                              cache + row_at[row] + column * kPackLanes<T>, 16);
    }
  }
  __pipeline_commit();
}

// A pack of columns of each query head; of the last one again where there are fewer.
template <int kHeads, typename T>
__device__ void load_query(Pack<T, kPackLanes<T>> (&query)[kHeads], const PagedDecode& p,
                           const Work& work, int column, const Layout& at) {
  const T* const q = static_cast<const T*>(p.q) + work.sequence * p.q_row +
                     (column < at.columns ? column : 0) * kPackLanes<T>;
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
    query[g] = load<kPackLanes<T>>(q + (work.first_head + min(g, work.heads - 1)) * p.q_head);
  }
}

// Add kHeads numbers up over `lanes` neighbouring lanes, at least kHeads. Lane l returns the sum
// of number l / (lanes / kHeads). Each step passes on only those numbers that the other half of
// the lanes will hold, so that four sums over sixteen lanes take 5 shuffles instead of 16.
template <int kHeads, typename A>
__device__ __forceinline__ A spread_sums(A (&number)[kHeads], int lanes) {
  int offset = lanes / 2;
#pragma unroll
  for (int count = kHeads / 2; count > 0; count /= 2, offset /= 2) {
    const bool is_upper = threadIdx.x & offset;
#pragma unroll
    for (int g = 0; g < count; ++g) {
      const A passed = is_upper ? number[g] : number[g + count];
      const A kept = is_upper ? number[g + count] : number[g];
      number[g] = kept + __shfl_xor_sync(~0u, passed, offset);
    }
  }
#pragma unroll
  for (; offset > 0; offset /= 2) number[0] += __shfl_xor_sync(~0u, number[0], offset);
  return number[0];
}

// Scores of a tile's tokens, [kHeads, tile], in powers of two. A thread holds a pack of columns of
// the queries, of the first columns to begin with, and walks down the keys.
template <int kHeads, typename T, typename A>
__device__ __forceinline__ void score(Pack<T, kPackLanes<T>> (&query)[kHeads], const T* keys,
                                      A* scores, const PagedDecode& p, const Work& work, int rows,
                                      int D, const Layout& at) {
  constexpr int kLanes = kPackLanes<T>;
  const int lane = threadIdx.x % at.lanes, per_head = at.lanes / kHeads;
  const A scale = static_cast<A>(p.scale * 1.4426950408889634);  // log2(e)
  for (int first = 0; first < at.columns; first += at.lanes) {   // once, but for wide rows
    const int column = first + lane;
    if (first > 0) load_query(query, p, work, column, at);
    A wide[kHeads][kLanes];
#pragma unroll
    for (int g = 0; g < kHeads; ++g) {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) wide[g][i] = widen(query[g].values[i]);
    }
#pragma unroll 2
    for (int top = 0; top < at.tile; top += kThreads / at.lanes) {
      if (top >= rows) break;
      const int token = top + threadIdx.x / at.lanes;
      A sum[kHeads] = {};
      if (column < at.columns && token < rows) {
        const auto key = load<kLanes>(keys + token * D + column * kLanes);
#pragma unroll
        for (int g = 0; g < kHeads; ++g) {
#pragma unroll
          for (int i = 0; i < kLanes; ++i) sum[g] += wide[g][i] * widen(key.values[i]);
        }
      }
      const A whole = spread_sums(sum, at.lanes) * scale;
      if (lane % per_head == 0 && token < rows) {
        A& target = scores[lane / per_head * at.tile + token];
        target = first > 0 ? target + whole : whole;
      }
    }
  }
}

// Online softmax of the query heads, a warp each: scores become weights relative to the maximum
// `top` so far, of which `total` is the sum; `shrink` is what earlier weights are to be scaled by.
template <int kHeads, typename A>
__device__ void soften(A* scores, A* top, A* total, A* shrink, int rows, int tile) {
  const int lane = threadIdx.x % 32;
  for (int g = threadIdx.x / 32; g < kHeads; g += kWarps) {
    A* const row = scores + g * tile;
    A highest = top[g];
#pragma unroll 1
    for (int t = lane; t < rows; t += 32) highest = max(highest, row[t]);
    highest = warp_max(highest);
    A sum = 0;
#pragma unroll 1
    for (int t = lane; t < rows; t += 32) sum += row[t] = exp2(row[t] - highest);
    sum = warp_sum(sum);
    if (lane == 0) {
      shrink[g] = exp2(top[g] - highest);
      total[g] = total[g] * shrink[g] + sum;
      top[g] = highest;
    }
  }
}

// Add a tile's weighted values to what the thread holds, one pack of columns.
template <int kHeads, typename T, typename A>
__device__ __forceinline__ void accumulate(A (&sum)[kHeads][kPackLanes<T>], const T* values,
                                           const A* weights, const A* shrink, int rows, int D,
                                           const Layout& at) {
  constexpr int kLanes = kPackLanes<T>;
  const int column = threadIdx.x % at.across;
  if (column >= at.columns) return;
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) sum[g][i] *= shrink[g];
  }
#pragma unroll 2
  for (int top = 0; top < at.tile; top += kThreads / at.across) {
    const int token = top + threadIdx.x / at.across;
    if (token >= rows) break;
    const auto value = load<kLanes>(values + token * D + column * kLanes);
#pragma unroll
    for (int g = 0; g < kHeads; ++g) {
      const A weight = weights[g * at.tile + token];
#pragma unroll
      for (int i = 0; i < kLanes; ++i) sum[g][i] += weight * widen(value.values[i]);
    }
  }
}

// Put the threads' sums into shared memory, [kThreads / across, kHeads, D].
template <int kHeads, int kLanes, typename A>
__device__ __forceinline__ void lay_out(const A (&sum)[kHeads][kLanes], A* shared, int D,
                                        const Layout& at) {
  constexpr int kStep = kPackLanes<A>;
  const int column = threadIdx.x % at.across;
  if (column >= at.columns) return;
  A* const piece = shared + threadIdx.x / at.across * kHeads * D + column * kLanes;
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
#pragma unroll
    for (int i = 0; i < kLanes; i += kStep) {
      Pack<A, kStep> some;
#pragma unroll
      for (int j = 0; j < kStep; ++j) some.values[j] = sum[g][i + j];
      store(piece + g * D + i, some);
    }
  }
}

// Add up the splits of a sequence and a KV head: `partial` has, for each query head and split, D
// sums, the maximum and the total that they belong to.
template <int kHeads, typename T, typename A>
__device__ __forceinline__ void combine(const A* partial, T* out, const Work& work, int most_splits,
                                        int D) {
  __shared__ A share[kHeads][kMostSplits];
  const int stride = D + 2, count = Splits(work.length).count, lane = threadIdx.x % 32;
  // Loads that bypass the L1 cache, in which other blocks' writes do not show.
#pragma unroll 1
  for (int g = threadIdx.x / 32; g < work.heads; g += kWarps) {
    const A* const state = partial + (g * most_splits + lane) * stride + D;
    const A top = lane < count ? __ldcg(state) : A(-INFINITY);
    const A total = lane < count ? __ldcg(state + 1) : A(0);
    const A highest = warp_max(top);
    const A weight = lane < count ? exp2(top - highest) : A(0);
    share[g][lane] = weight / warp_sum(weight * total);
  }
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < work.heads * D; i += kThreads) {
    const int g = i / D;
    const A* const of_split = partial + g * most_splits * stride + i % D;
    A whole = 0;
#pragma unroll 8
    for (int s = 0; s < count; ++s) whole += share[g][s] * __ldcg(of_split + s * stride);
    out[i] = narrow<T>(whole);
  }
}

// End a work item: write its result, or its part of one and, as the last to come, the result.
template <int kHeads, typename T, typename A>
__device__ __forceinline__ void finish(const A (&sum)[kHeads][kPackLanes<T>], const A* top,
                                       const A* total, A* shared, const PagedDecode& p,
                                       const Work& work, int D, const Layout& at) {
  __shared__ bool is_last;
  const int stride = D + 2, most_splits = p.most_splits(), thread = threadIdx.x;
  const int count = Splits(work.length).count;
  const int64_t head = int64_t(work.sequence) * p.H + work.first_head;
  T* const out = static_cast<T*>(p.out) + head * D;
  A* const partial = static_cast<A*>(p.partial) + head * most_splits * stride;

  lay_out(sum, shared, D, at);
  __syncthreads();
#pragma unroll 1
  for (int i = thread; i < work.heads * D; i += kThreads) {
    A whole = 0;
#pragma unroll 4
    for (int piece = 0; piece < kThreads / at.across; ++piece) {
      whole += shared[piece * kHeads * D + i];
    }
    const int g = i / D;
    if (count > 1) {
      partial[(g * most_splits + work.split) * stride + i % D] = whole;
    } else {
      out[i] = narrow<T>(work.length > 0 ? whole / total[g] : A(0));
    }
  }
  if (count == 1) return;
  if (thread < work.heads) {
    A* const state = partial + (thread * most_splits + work.split) * stride + D;
    state[0] = top[thread];
    state[1] = total[thread];
  }
  __threadfence();  // what this block wrote is there before it is counted
  __syncthreads();
  if (thread == 0) {  // atomicInc goes back to zero by itself
    const unsigned last = count - 1;
    is_last = atomicInc(p.arrivals + head, last) == last;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  combine<kHeads>(partial, out, work, most_splits, D);
}

// kD is the head size where the compiler is to know it, else 0.
template <typename T, int kHeads, int kD>
__global__ void __launch_bounds__(kThreads, kD > 0 ? kBlocksAtOnce : kBlocksAtOnce - 1)
    paged_decode_kernel(PagedDecode p) {
  using A = Arithmetic<T>;
  extern __shared__ uint4 memory[];
  const int D = kD > 0 ? kD : p.D, thread = threadIdx.x;
  const Layout at(D, sizeof(T), kHeads);
  T* const keys = reinterpret_cast<T*>(memory);
  T* const values = keys + at.tile * D;
  A* const scores = reinterpret_cast<A*>(values + at.tile * D);  // [kHeads, tile]
  __shared__ int64_t row_at[kThreads];
  __shared__ A top[kHeads], total[kHeads], shrink[kHeads];

#pragma unroll 1
  for (int item = blockIdx.x;; item += gridDim.x) {
    Work work;
    if (!open<kHeads>(p, item, work)) return;
    if (thread < kHeads) {
      top[thread] = -INFINITY;
      total[thread] = 0;
    }
    A sum[kHeads][kPackLanes<T>] = {};
#pragma unroll 1
    for (; work.first < work.end; work.first += at.tile) {
      const int rows = min(at.tile, work.end - work.first);
      int64_t block = 0;
      const int position = work.first + thread;
      if (thread < rows) block = p.table[int64_t(work.sequence) * p.W + position / p.block_size];
      Pack<T, kPackLanes<T>> query[kHeads];
      load_query(query, p, work, thread % at.lanes, at);  // on its way with the table's entry
      row_at[thread] = ((block * p.block_size + position % p.block_size) * p.K + work.kv_head) * D;
      __syncthreads();
      fetch(keys, static_cast<const T*>(p.k), row_at, rows, D, at);
      fetch(values, static_cast<const T*>(p.v), row_at, rows, D, at);
      __pipeline_wait_prior(1);
      __syncthreads();
      score(query, keys, scores, p, work, rows, D, at);
      __syncthreads();
      soften<kHeads>(scores, top, total, shrink, rows, at.tile);
      __pipeline_wait_prior(0);
      __syncthreads();
      accumulate<kHeads>(sum, values, scores, shrink, rows, D, at);
      __syncthreads();
    }
    finish<kHeads, T>(sum, top, total, reinterpret_cast<A*>(memory), p, work, D, at);
  }
}

template <typename T, int kHeads, int kD>
cudaError_t launch(const PagedDecode& p, cudaStream_t stream) {
  const auto kernel = paged_decode_kernel<T, kHeads, kD>;
  const Layout at(p.D, sizeof(T), kHeads);
  int device, processors, per_processor;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  const cudaError_t error =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, kThreads, at.bytes);
  if (error != cudaSuccess) return error;
  const int64_t chunks = (p.H / p.K + kHeads - 1) / kHeads;
  const int64_t items = int64_t(p.B) * p.most_splits() * p.K * chunks;
  const auto blocks = std::min<int64_t>(items, int64_t(processors) * per_processor);
  kernel<<<unsigned(blocks), kThreads, at.bytes, stream>>>(p);
  return cudaGetLastError();
}

template <typename T, int kHeads>
cudaError_t by_head(const PagedDecode& p, cudaStream_t stream) {
  if (p.D == 64) return launch<T, kHeads, 64>(p, stream);
  if (p.D == 128) return launch<T, kHeads, 128>(p, stream);
  return launch<T, kHeads, 0>(p, stream);
}

}  // namespace

cudaError_t paged_decode(const PagedDecode& p, cudaStream_t stream) {
  if (p.B == 0) return cudaSuccess;
  return dispatch(p.type, [&](auto kind) {
    using T = decltype(kind);
    const int G = p.H / p.K;
    if (G == 1) return by_head<T, 1>(p, stream);
    if (G == 2) return by_head<T, 2>(p, stream);
    return by_head<T, kMostHeads>(p, stream);
  });
}

}  // namespace mini_llm_server::cuda
