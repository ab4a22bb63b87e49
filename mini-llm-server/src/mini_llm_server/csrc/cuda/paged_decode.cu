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
// Four or more such blocks fit on a multiprocessor, so that enough is on its way even while most of
// them compute.
//
// The grid is as large as the GPU and finds its work in the lengths, on the device: the same launch
// serves any lengths, as a CUDA graph's has to, and costs nothing for contexts that are not there.
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

  __host__ __device__ explicit Splits(int64_t length) {
    const int64_t even = (length + kMostSplits - 1) / kMostSplits;
    const int64_t whole = (even + kShortestSplit - 1) / kShortestSplit;
    tokens = static_cast<int>((whole > 0 ? whole : 1) * kShortestSplit);
    count = length > 0 ? static_cast<int>((length + tokens - 1) / tokens) : 1;
  }
};

// How a block's threads and shared memory are divided, for a head size and a storage type.
struct Layout {
  int columns;  // packs of 16 bytes in a row of D
  int across;   // threads side by side on a row of values: columns, up to a power of two
  int lanes;    // and on a row of keys, within a warp
  int tile;     // tokens whose keys and values are in shared memory at once
  int bytes;    // of shared memory, in all

  Layout(int D, int type_bytes, int heads) {
    columns = D * type_bytes / 16;
    for (across = heads; across < columns;) across *= 2;
    lanes = std::min(32, across);
    // 16 KB of keys; half for double, whose queries and sums take twice the space.
    const int most = (type_bytes == 8 ? 8192 : 16384) / (D * type_bytes);
    for (tile = kThreads; tile > most;) tile /= 2;
    const int arithmetic_bytes = type_bytes == 8 ? 8 : 4;
    bytes = 2 * tile * columns * 16 + heads * (D + tile) * arithmetic_bytes;
  }
};

// A split of a sequence's context.
struct Work {
  int sequence, split;
  int64_t length;  // of the whole context
};

// Let the block find split number `unit` of all sequences' splits. Returns false if there are
// fewer.
__device__ bool find(const int64_t* length, int B, int unit, Work& work) {
  __shared__ int of_warp[kWarps];
  __shared__ Work found;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int before = 0;
  for (int first = 0; first < B && unit >= before; first += kThreads) {
    const int b = first + threadIdx.x;
    const int64_t own_length = b < B ? length[b] : 0;
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
    if (end - own <= unit && unit < end) found = {b, unit - (end - own), own_length};
    __syncthreads();
  }
  work = found;
  return unit < before;
}

// Ask for rows of the cache: those at row_at, in numbers from `cache` on.
template <typename T>
__device__ void fetch(T* target, const T* cache, const int64_t* row_at, int rows,
                      const Layout& at) {
  constexpr int kLanes = kPackLanes<T>;
  const int column = threadIdx.x % at.across;
  if (column < at.columns) {
    for (int row = threadIdx.x / at.across; row < rows; row += kThreads / at.across) {
      __pipeline_memcpy_async(target + (row * at.columns + column) * kLanes,
                              cache + row_at[row] + column * kLanes, 16);
    }
  }
  __pipeline_commit();
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
  for (; offset > 0; offset /= 2) number[0] += __shfl_xor_sync(~0u, number[0], offset);
  return number[0];
}

// Scores of a tile's tokens, [kHeads, tile], in powers of two. A thread holds a pack of columns of
// the queries and walks down the keys.
template <int kHeads, typename T, typename A>
__device__ void score(const T* keys, const A* query, A* scores, int rows, int D, const Layout& at) {
  constexpr int kLanes = kPackLanes<T>, kStep = kPackLanes<A>;
  const int lane = threadIdx.x % at.lanes, per_head = at.lanes / kHeads;
  for (int first = 0; first < at.columns; first += at.lanes) {  // once, but for wide rows
    const int column = first + lane;
    const bool is_inside = column < at.columns;
    A own[kHeads][kLanes];
#pragma unroll
    for (int g = 0; g < kHeads; ++g) {
#pragma unroll
      for (int i = 0; i < kLanes; i += kStep) {
        const auto some = load<kStep>(query + g * D + (is_inside ? column : 0) * kLanes + i);
#pragma unroll
        for (int j = 0; j < kStep; ++j) own[g][i + j] = some.values[j];
      }
    }
#pragma unroll 4
    for (int top = 0; top < rows; top += kThreads / at.lanes) {
      const int token = top + threadIdx.x / at.lanes;
      A sum[kHeads] = {};
      if (is_inside && token < rows) {
        const auto key = load<kLanes>(keys + (token * at.columns + column) * kLanes);
#pragma unroll
        for (int g = 0; g < kHeads; ++g) {
#pragma unroll
          for (int i = 0; i < kLanes; ++i) sum[g] += own[g][i] * widen(key.values[i]);
        }
      }
      const A whole = spread_sums(sum, at.lanes);
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
    for (int t = lane; t < rows; t += 32) highest = max(highest, row[t]);
    highest = warp_max(highest);
    A sum = 0;
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
__device__ void accumulate(A (&sum)[kHeads][kPackLanes<T>], const T* values, const A* weights,
                           const A* shrink, int rows, const Layout& at) {
  constexpr int kLanes = kPackLanes<T>;
  const int column = threadIdx.x % at.across;
  if (column >= at.columns) return;
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) sum[g][i] *= shrink[g];
  }
#pragma unroll 4
  for (int token = threadIdx.x / at.across; token < rows; token += kThreads / at.across) {
    const auto value = load<kLanes>(values + (token * at.columns + column) * kLanes);
#pragma unroll
    for (int g = 0; g < kHeads; ++g) {
      const A weight = weights[g * at.tile + token];
#pragma unroll
      for (int i = 0; i < kLanes; ++i) sum[g][i] += weight * widen(value.values[i]);
    }
  }
}

// Bring the threads' sums together in shared memory, [pieces, kHeads, D]; returns how many pieces
// are left to add up.
template <int kHeads, int kLanes, typename A>
__device__ int gather(A (&sum)[kHeads][kLanes], A* shared, int D, const Layout& at) {
  constexpr int kStep = kPackLanes<A>;
  for (int offset = at.across; offset < 32; offset *= 2) {
#pragma unroll
    for (int g = 0; g < kHeads; ++g) {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) sum[g][i] += __shfl_xor_sync(~0u, sum[g][i], offset);
    }
  }
  const int span = max(32, at.across);  // threads that hold one piece now
  const int column = threadIdx.x % span;
  if (column < at.columns) {
    A* const piece = shared + threadIdx.x / span * kHeads * D + column * kLanes;
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
  return kThreads / span;
}

template <typename T, int kHeads>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce)
    paged_decode_kernel(PagedDecode p, Layout at) {
  using A = Arithmetic<T>;
  constexpr int kLanes = kPackLanes<T>;
  extern __shared__ uint4 memory[];
  const int G = p.H / p.K, D = p.D, thread = threadIdx.x, lane = thread % 32;
  T* const keys = reinterpret_cast<T*>(memory);
  T* const values = keys + at.tile * D;
  A* const query = reinterpret_cast<A*>(values + at.tile * D);  // [kHeads, D]
  A* const scores = query + kHeads * D;                         // [kHeads, tile]
  A* const gathered = reinterpret_cast<A*>(memory);             // in the place of keys and values
  __shared__ int64_t row_at[kThreads];
  __shared__ A top[kHeads], total[kHeads], shrink[kHeads], share[kHeads][kMostSplits];
  __shared__ bool is_last;

  const int chunks = (G + kHeads - 1) / kHeads;  // items that share a split and a KV head
  const int stride = D + 2;
  const int most_splits = p.most_splits();

  for (int item = blockIdx.x;; item += gridDim.x) {
    Work work;
    if (!find(p.length, p.B, item / (p.K * chunks), work)) return;
    const int b = work.sequence, split = work.split;
    const int kv_head = item % (p.K * chunks) / chunks;
    const int first_head = kv_head * G + item % chunks * kHeads;
    const int heads = min(kHeads, kv_head * G + G - first_head);
    const Splits splits(work.length);
    const int begin = split * splits.tokens;
    const int end = static_cast<int>(min(work.length, int64_t(begin) + splits.tokens));

    if (thread < kHeads) {
      top[thread] = -INFINITY;
      total[thread] = 0;
    }
    A sum[kHeads][kLanes] = {};
    for (int first = begin; first < end; first += at.tile) {
      const int rows = min(at.tile, end - first), position = first + thread;
      int64_t block = 0;
      if (thread < rows) block = p.table[int64_t(b) * p.W + position / p.block_size];
      if (first == begin) {  // only now: keys wait for the table, and the query comes with it
        const T* const q = static_cast<const T*>(p.q) + b * p.q_row + first_head * p.q_head;
        const A scale = static_cast<A>(p.scale * 1.4426950408889634);  // log2(e): powers of two
        for (int g = 0; g < kHeads; ++g) {
          for (int d = thread; d < D; d += kThreads) {
            query[g * D + d] = g < heads ? widen(q[g * p.q_head + d]) * scale : A(0);
          }
        }
      }
      row_at[thread] = ((block * p.block_size + position % p.block_size) * p.K + kv_head) * D;
      __syncthreads();
      fetch(keys, static_cast<const T*>(p.k), row_at, rows, at);
      fetch(values, static_cast<const T*>(p.v), row_at, rows, at);
      __pipeline_wait_prior(1);
      __syncthreads();
      score<kHeads>(keys, query, scores, rows, D, at);
      __syncthreads();
      soften<kHeads>(scores, top, total, shrink, rows, at.tile);
      __pipeline_wait_prior(0);
      __syncthreads();
      accumulate<kHeads>(sum, values, scores, shrink, rows, at);
      __syncthreads();
    }
    const int pieces = gather(sum, gathered, D, at);
    __syncthreads();

    T* const out = static_cast<T*>(p.out) + (int64_t(b) * p.H + first_head) * D;
    A* const partial =
        static_cast<A*>(p.partial) + (int64_t(b) * p.H + first_head) * most_splits * stride;
    for (int i = thread; i < heads * D; i += kThreads) {
      A whole = 0;
      for (int piece = 0; piece < pieces; ++piece) whole += gathered[piece * kHeads * D + i];
      const int g = i / D;
      if (splits.count > 1) {
        partial[(g * most_splits + split) * stride + i % D] = whole;
      } else {
        out[i] = narrow<T>(work.length > 0 ? whole / total[g] : A(0));
      }
    }
    if (splits.count == 1) continue;
    if (thread < heads) {
      partial[(thread * most_splits + split) * stride + D] = top[thread];
      partial[(thread * most_splits + split) * stride + D + 1] = total[thread];
    }

    __threadfence();  // what this block wrote is there before it is counted
    __syncthreads();
    if (thread == 0) {  // atomicInc goes back to zero by itself
      const unsigned last = splits.count - 1;
      is_last = atomicInc(p.arrivals + b * p.H + first_head, last) == last;
    }
    __syncthreads();
    if (!is_last) continue;
    __threadfence();
    // Loads that bypass the L1 cache, in which other blocks' writes do not show.
    for (int g = thread / 32; g < heads; g += kWarps) {
      const A* const state = partial + (g * most_splits + lane) * stride + D;
      const bool mine = lane < splits.count;
      const A own_top = mine ? __ldcg(state) : A(-INFINITY);
      const A highest = warp_max(own_top);
      const A weight = mine ? exp2(own_top - highest) : A(0);
      share[g][lane] = weight / warp_sum(mine ? weight * __ldcg(state + 1) : A(0));
    }
    __syncthreads();
    for (int i = thread; i < heads * D; i += kThreads) {
      const int g = i / D;
      const A* const of_split = partial + g * most_splits * stride + i % D;
      A whole = 0;
#pragma unroll 8
      for (int s = 0; s < splits.count; ++s) whole += share[g][s] * __ldcg(of_split + s * stride);
      out[i] = narrow<T>(whole);
    }
  }
}

template <typename T, int kHeads>
cudaError_t launch(const PagedDecode& p, cudaStream_t stream) {
  const auto kernel = paged_decode_kernel<T, kHeads>;
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
  kernel<<<unsigned(blocks), kThreads, at.bytes, stream>>>(p, at);
  return cudaGetLastError();
}

}  // namespace

cudaError_t paged_decode(const PagedDecode& p, cudaStream_t stream) {
  if (p.B == 0) return cudaSuccess;
  return dispatch(p.type, [&](auto kind) {
    using T = decltype(kind);
    const int G = p.H / p.K;
    if (G == 1) return launch<T, 1>(p, stream);
    if (G == 2) return launch<T, 2>(p, stream);
    return launch<T, kMostHeads>(p, stream);
  });
}

}  // namespace mini_llm_server::cuda
